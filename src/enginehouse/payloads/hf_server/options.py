"""The server's command line."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

API_KEY_VARIABLE = "HF_SERVER_API_KEY"
ADMIN_KEY_VARIABLE = "HF_SERVER_ADMIN_KEY"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The parsed command line; None leaves the choice to the server."""

    model: str
    served_model_name: str
    host: str
    port: int
    device: str
    dtype: str
    max_model_len: int | None
    max_num_seqs: int
    max_num_batched_tokens: int | None
    gpu_memory_utilization: float
    kv_cache_memory_bytes: int | None
    trust_remote_code: bool
    enable_lora: bool
    max_loras: int
    max_lora_rank: int
    allow_runtime_lora_updating: bool
    max_logprobs: int
    logprobs_mode: str


def _natural(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def _fraction(text: str) -> float:
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"must be in (0, 1], got {text}")
    return number


def make_parser() -> argparse.ArgumentParser:
    """The parser; options mean what vLLM's of the same name mean, unless their help differs."""
    parser = argparse.ArgumentParser(prog="hf_server", allow_abbrev=False)
    add = parser.add_argument
    add("--model", required=True, help="a checkpoint's folder, or a hub handle")
    add("--served-model-name", help="the name that requests use (default: the model's)")
    add("--host", default="127.0.0.1")
    add("--port", type=int, required=True)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add(
        "--dtype",
        choices=("auto", "bfloat16", "float16", "float32"),
        default="auto",
        help="auto: bfloat16; float16 on a GPU that lacks it; float32 on a CPU",
    )
    add("--max-model-len", type=_natural)
    add("--max-num-seqs", type=_natural, default=64)
    add("--max-num-batched-tokens", type=_natural, help="prompt tokens computed in one step")
    add("--gpu-memory-utilization", type=_fraction, default=0.9)
    add("--kv-cache-memory-bytes", type=_natural)
    add("--trust-remote-code", action="store_true")
    add("--enable-lora", action="store_true")
    add("--max-loras", type=_natural, default=64, help="adapters that can be loaded at a time")
    add("--max-lora-rank", type=_natural, default=512)
    add("--allow-runtime-lora-updating", action="store_true")
    add("--max-logprobs", type=_natural, default=20, help="candidates per token")
    add(
        "--logprobs-mode",
        choices=("raw_logprobs", "processed_logprobs"),
        default="raw_logprobs",
        help="of answers: the model's own, or those of what is sampled from",
    )
    return parser


def parse(arguments: list[str]) -> Options:
    """The options in `arguments`; argparse exits with a message for a wrong one."""
    found = vars(make_parser().parse_args(arguments))
    if found["served_model_name"] is None:
        found["served_model_name"] = Path(found["model"]).name or found["model"]
    return Options(**found)
