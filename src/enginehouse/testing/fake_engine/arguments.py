"""The flags of vLLM 0.32's server that Enginehouse uses, with vLLM's spellings and defaults."""

from __future__ import annotations

import argparse

_DTYPES = ("auto", "bfloat16", "float", "float16", "float32", "half")
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_LOGPROBS_MODES = ("processed_logits", "processed_logprobs", "raw_logits", "raw_logprobs")
_LOG_LEVELS = ("critical", "debug", "error", "info", "trace", "warning")

_TEXT: tuple[tuple[str, str | None], ...] = (
    ("--model", "Qwen/Qwen3-0.6B"),
    ("--host", None),
    ("--config", None),
    ("--root-path", None),
    ("--tokenizer", None),
    ("--revision", None),
    ("--download-dir", None),
    ("--load-format", "auto"),
    ("--generation-config", "auto"),
    ("--override-generation-config", None),
    ("--structured-outputs-config", None),
    ("--weight-transfer-config", None),
    ("--chat-template", None),
    ("--reasoning-parser", ""),
    ("--tool-call-parser", None),
    ("--kv-cache-dtype", "auto"),
    ("--distributed-executor-backend", None),
)
_NUMBERS: tuple[tuple[tuple[str, ...], int | None], ...] = (
    (("--port",), 8000),
    (("--seed",), 0),
    (("--tensor-parallel-size", "-tp"), 1),
    (("--pipeline-parallel-size", "-pp"), 1),
    (("--data-parallel-size", "-dp"), 1),
    (("--api-server-count", "-asc"), None),
    (("--max-num-seqs",), None),
    (("--max-num-batched-tokens",), None),
    (("--max-logprobs",), 20),
    (("--max-loras",), 1),
)
_SWITCHES = (
    "--trust-remote-code",
    "--enforce-eager",
    "--enable-prefix-caching",
    "--enable-chunked-prefill",
    "--enable-lora",
    "--enable-sleep-mode",
    "--enable-log-requests",
    "--enable-auto-tool-choice",
    "--disable-uvicorn-access-log",
)


def make_arg_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the flags to `parser`, as vLLM's function of the same name does."""
    for flag, text in _TEXT:
        parser.add_argument(flag, default=text)
    for flags, number in _NUMBERS:
        parser.add_argument(*flags, type=int, default=number)
    for switch in _SWITCHES:
        parser.add_argument(switch, action=argparse.BooleanOptionalAction, default=None)
    parser.add_argument("--quantization", "-q", default=None)
    parser.add_argument("--served-model-name", nargs="+", default=None)
    parser.add_argument("--api-key", nargs="+", default=None)
    parser.add_argument("--middleware", action="append", default=[])
    parser.add_argument("--lora-modules", nargs="+", default=None)
    parser.add_argument("--max-model-len", type=_length, default=None)
    parser.add_argument(
        "--gpu-memory-utilization", "--device-memory-utilization", type=float, default=0.92
    )
    parser.add_argument("--dtype", choices=_DTYPES, default="auto")
    parser.add_argument("--max-lora-rank", type=int, choices=_LORA_RANKS, default=16)
    parser.add_argument("--logprobs-mode", choices=_LOGPROBS_MODES, default="raw_logprobs")
    parser.add_argument("--uvicorn-log-level", choices=_LOG_LEVELS, default="info")
    parser.add_argument("--disable-log-stats", action="store_true")
    return parser


def _length(text: str) -> int:
    units = {"k": 1000, "K": 1024}
    return int(float(text[:-1]) * units[text[-1]]) if text[-1:] in units else int(text)
