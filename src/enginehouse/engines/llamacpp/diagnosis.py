"""How a llama-server's log is read, and the rules for what only llama.cpp says.

Its errors come in order, the cause before "failed to load model" and the like; a wrong command line
comes without time and level, and older builds write neither at all. Most patterns were seen in logs
of build 11434 on a CPU; those for GPUs were read in its sources and in what users report.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path

from enginehouse.diagnosis import KERNEL, LogProfile, RuleFiles, Surroundings

_SMALLER = (
    "use a smaller quantisation of the model, a smaller --max-model-len, or fewer sequences with "
    "--max-num-seqs: the context of every sequence is allocated at the start"
)
_AGAIN = "download or copy the file again; a Git LFS pointer needs `git lfs pull`"
_NEWER = (
    "set ENGINEHOUSE_LLAMACPP_SERVER to a newer llama-server, or serve the model with --engine "
    "vllm or hf"
)


RULES = RuleFiles(
    Path(__file__).with_name("failures.yaml"),
    fragments={"SMALLER": _SMALLER, "AGAIN": _AGAIN, "NEWER": _NEWER},
)

_SIGNALS = {
    signal.SIGILL: (
        "the processor lacks instructions that this llama-server was compiled for",
        "build it on this machine: `enginehouse install llamacpp`",
    ),
    signal.SIGSEGV: (
        "native code of llama.cpp crashed (SIGSEGV)",
        "start it again with extra_args --no-repack (for processors with AMX), and report it",
    ),
    signal.SIGABRT: (
        "native code of llama.cpp aborted (SIGABRT)",
        "read the last lines of the log, which say why",
    ),
    signal.SIGBUS: (
        "the model's file became shorter while it was being read, or the disk failed (SIGBUS)",
        _AGAIN,
    ),
}

PROFILE = LogProfile(
    name="llamacpp",
    title="llama.cpp",
    marks=re.compile(
        r"\bllama_[a-z]\w+|\bggml_?\w*|gguf_|llama-(?:server|cli|bench)|llama\.cpp"
        r"|llama runner|^srv +\w"
    ),
    rules=RULES,
    ready=re.compile(r"listening on http|HTTP server (?:is )?listening.{0,200}all slots are idle"),
    stopped=re.compile(r"cleaning up before exit"),
    pointer=re.compile(
        r"exiting due to|(?<!clip_init: )failed to (?:load model|create context|create_context"
        r"|load lora adapter"
        r"|apply lora adapter: failed to load|initialize the context: failed|read header)"
        r"|error loading model: llama_model_loader: failed|fit params to free device memory"
        r"|unable to load model(?! '[^'\n]{1,300}': No such)|[Ff]ailed to (?:load model from file"
        r"|create llama_context)|llama runner process (?:has terminated"
        r"|no longer running): (?:exit "
        r"status|signal|-?\d)|^Error: Failed to initialize"
    ),
    error_lines=re.compile(
        r"(?!.{0,40}(?i:warn))(?:error[: ]|bind: |.{0,300}?(?:\berror\b|CUDA error|ErrorOutOf"
        r"|failed\b|DEVICE_LOST|no backends are|couldn't bind|unable to |GGML_ASSERT|ggml_abort"
        r"|terminate called|invalid magic"
        r"|insufficient memory|cannot open|invalid ggml type|requires flash_attn"
        r"|Library not loaded|cannot download|Device lost|cannot run the operation|illegal split"
        r"|does not exist in"
        r"|invalid http status))"
    ),
    signals=_SIGNALS,
    killed_fix=f"{KERNEL}; if so, {_SMALLER}",
    words=Surroundings(
        rebuild="`enginehouse envs remove KEY`, then `enginehouse install llamacpp`",
        less_gpu_memory=f"{_SMALLER}; or keep some layers off the GPU with extra_args "
        "--gpu-layers N",
    ),
)
