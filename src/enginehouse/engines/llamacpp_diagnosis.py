"""Why a llama-server failed: finds, in its log, the line that says it first.

Its errors come in order, the cause before "failed to load model" and the like; a wrong command line
comes without time and level. Most patterns were seen in logs of build 11434 on a CPU; those for
GPUs were read in its sources.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from enginehouse.engines.diagnosis import (
    READ_THE_LOG,
    Diagnosis,
    FailureKind,
    Rule,
    Surroundings,
    recognise,
)

_LINE = re.compile(r"(?:\d+\.\d+\.\d+\.\d+ (?P<level>[IWED]) )?(?P<text>.*)")
_BARE_ERROR = re.compile(r"error[: ]|terminate called|.*GGML_ASSERT|.*\bCUDA error|ggml_abort")
_LONGEST = 400  # characters of evidence
_READ = 4000  # characters of a line
_READY = "listening on http"
_STOPPED = "cleaning up before exit"

_SMALLER = (
    "take a smaller quantisation of the model, a smaller --max-model-len, or fewer sequences "
)
_SMALLER += "with --max-num-seqs: every sequence's context is set aside when it starts"
_AGAIN = "download or copy the file again; a Git LFS pointer needs `git lfs pull`"
_NEWER = (
    "name a newer llama-server in ENGINEHOUSE_LLAMACPP_SERVER, or serve the model with --engine "
    "vllm or hf"
)
_RULES = (
    Rule(
        FailureKind.PORT_TAKEN,
        r"couldn't bind HTTP server socket, hostname: (?P<host>\S+), port: (?P<port>\d+)",
        "another program listens on port {port} of {host}, or the address is not this machine's",
        "leave the port out, so that a free one is leased, or end that program",
    ),
    Rule(
        FailureKind.UNKNOWN_FLAG,
        r"error: (?:invalid|unknown) argument: (?P<flag>\S+)",
        "this llama-server has no flag {flag}",
        "correct extra_args; `llama-server --help` lists its flags",
    ),
    Rule(
        FailureKind.WRONG_VALUE,
        r'error while handling argument "(?P<flag>[^"]+)": (?P<why>.*)',
        "{flag} was given what it does not take: {why}",
        "correct extra_args; the log shows what {flag} takes",
    ),
    Rule(
        FailureKind.MODEL_NOT_FOUND,
        r"failed to open GGUF file '(?P<file>[^']*)'",
        "the model's file is not there, or may not be read: {file}",
        "check the path and its permissions",
    ),
    Rule(
        FailureKind.MODEL_NOT_FOUND,
        r"llama_adapter_lora_init: failed to open '(?P<file>[^']*)'",
        "the LoRA adapter's file is not there, or may not be read: {file}",
        "correct --lora in extra_args",
    ),
    Rule(
        FailureKind.WRONG_VALUE,
        r"failed to apply lora adapter: (?P<why>.*)",
        "the file that --lora names is no LoRA adapter for this model: {why}",
        "make it of the PEFT adapter of this very model with llama.cpp's convert_lora_to_gguf.py",
    ),
    Rule(
        FailureKind.UNSUPPORTED_MODEL,
        r"unknown model architecture: '(?P<name>[^']*)'"
        r"|unknown pre-tokenizer type: '(?P<kind>[^']*)'",
        "this build of llama.cpp does not know the architecture or tokenizer {name}{kind}",
        _NEWER,
    ),
    Rule(
        FailureKind.UNSUPPORTED_MODEL,
        r"this GGUF file is version (?P<version>\d+) but this software only supports",
        "the file has version {version} of the format, which this build of llama.cpp does not know",
        _NEWER,
    ),
    Rule(
        FailureKind.MODEL_INCOMPLETE,
        r"data is not within the file bounds|exceeds remaining file size"
        r"|failed to read (?:key-value pairs|tensor info)|(?:invalid|missing) split",
        "the model's file is cut off, or parts of a split one are missing",
        "download or copy it again, whole; a split model needs all its parts in one folder",
    ),
    Rule(
        FailureKind.MODEL_BROKEN,
        r"invalid magic characters|failed to read magic",
        "a file that it was to load, the model or an adapter, is no GGUF file",
        _AGAIN,
    ),
    Rule(
        FailureKind.MODEL_BROKEN,
        r"missing tensor '(?P<name>[^']*)'|wrong number of tensors|tensor '[^']*' has invalid",
        "the file lacks tensors that its architecture has, or has others",
        "make or download it again, with a llama.cpp of the same age as this one",
    ),
    Rule(
        FailureKind.OUT_OF_MEMORY,
        r"cudaMalloc failed: out of memory|CUDA error: out of memory|unable to allocate CUDA",
        "the GPU's memory does not hold the model and the context of every sequence",
        f"{_SMALLER}; or keep some layers off the GPU with extra_args --gpu-layers N",
    ),
    Rule(
        FailureKind.HOST_MEMORY,
        r"insufficient memory \(attempted to allocate (?P<size>[\d.]+ MB)\)"
        r"|std::bad_alloc|Cannot allocate memory",
        "the memory does not hold the model and the context of every sequence ({size} at once)",
        _SMALLER,
    ),
    Rule(
        FailureKind.CUDA_MISMATCH,
        r"CUDA driver version is insufficient|no kernel image is available",
        "this llama-server was built for another GPU or a newer driver",
        "build it here (`enginehouse install llamacpp --variant cuda`), or update the driver",
    ),
    Rule(
        FailureKind.MISSING_LIBRARY,
        r"error while loading shared libraries: (?P<name>[^:]+)",
        "llama-server does not find its library {name}",
        "keep the program and its libraries in one folder, or set LD_LIBRARY_PATH",
    ),
    Rule(
        FailureKind.CRASHED,
        r"GGML_ASSERT\((?P<what>.*)\) failed|terminate called|ggml_abort",
        "llama.cpp met something that it takes for impossible, and gave up",
        "start it again; if the same line comes back, report it to llama.cpp with the log",
    ),
)
_SIGNALS = {
    signal.SIGILL: (
        "the processor lacks instructions that this llama-server was compiled for",
        "build it on this machine: `enginehouse install llamacpp`",
    ),
    signal.SIGSEGV: (
        "native code of llama.cpp crashed (SIGSEGV)",
        (
            "start it again with extra_args --no-repack, which avoids a crash on processors with "
            "AMX, and report it with the log"
        ),
    ),
    signal.SIGABRT: (
        "native code of llama.cpp gave up (SIGABRT)",
        "read the last lines of the log: what gave up says why there",
    ),
    signal.SIGBUS: (
        "the model's file became shorter while it was being read, or the disk failed (SIGBUS)",
        _AGAIN,
    ),
}
_KILLED_FIX = (
    "ask the kernel whether it was for memory: `dmesg -T | grep -i 'killed process'` (in a "
    f"container: oom_kill in /sys/fs/cgroup/memory.events); if so, {_SMALLER}"
)


@dataclass
class _Reading:
    """What a log has said so far."""

    around: Surroundings = field(default_factory=Surroundings)
    ready: bool = False
    stopped: bool = False
    known: Diagnosis | None = None
    first: str | None = None

    def read(self, lines: Iterable[str]) -> None:
        for line in lines:
            found = _LINE.match(line[:_READ])
            assert found is not None
            text, level = found["text"].strip(), found["level"]
            if _READY in text:
                self.ready = True
                self.known = self.first = None
            elif _STOPPED in text:
                self.stopped = self.first is None
            elif level == "E" or (level is None and self._is_bare(text)):
                self.first = self.first or text
                self.known = self.known or recognise(text, rules=_RULES, around=self.around)

    def _is_bare(self, text: str) -> bool:
        loader = "error while loading shared libraries" in text
        return loader or _BARE_ERROR.match(text) is not None

    def diagnosis(self, exit_code: int | None) -> Diagnosis | None:
        """What the log says, or else the exit code."""
        crashed = _crashed(exit_code, self.first or "")
        if self.ready and not crashed and self.stopped:
            return _told_to_stop()
        if self.known is not None:
            return self.known
        if crashed is not None:
            return crashed
        if exit_code in (-signal.SIGKILL, 128 + signal.SIGKILL):
            return _killed()
        return _unknown(self.first) if self.first else None


def diagnose(log: Path, *, exit_code: int | None) -> Diagnosis | None:
    """The first cause in llama-server's log, or what the exit code says; None if neither does.

    `exit_code` is negative for a signal. Blocks while it reads the log.
    """
    reading = _Reading()
    try:
        with log.open(encoding="utf-8", errors="replace") as lines:
            reading.read(lines)
    except OSError:
        return None
    found = reading.diagnosis(exit_code)
    if found is None or len(found.evidence) <= _LONGEST:
        return found
    same = found.cause == found.evidence
    short = found.evidence[:_LONGEST] + "…"
    return Diagnosis(
        kind=found.kind, evidence=short, cause=short if same else found.cause, fix=found.fix
    )


def _unknown(line: str) -> Diagnosis:
    return Diagnosis(kind=FailureKind.UNKNOWN, evidence=line, cause=line, fix=READ_THE_LOG)


def _told_to_stop() -> Diagnosis:
    return Diagnosis(
        kind=FailureKind.STOPPED,
        evidence=_STOPPED,
        cause="somebody told the server to stop (SIGTERM or SIGINT); it did not fail",
        fix="find out who: a batch system at its time limit, a shutdown, `kill`; then start it "
        "again, or `enginehouse resume RUN`",
    )


def _killed() -> Diagnosis:
    return Diagnosis(
        kind=FailureKind.KILLED,
        evidence="",
        cause="the server ended at once, without a word: killed, most likely, by the kernel for "
        "want of memory, by a batch system at a limit, or by `kill -9`",
        fix=_KILLED_FIX,
    )


def _crashed(exit_code: int | None, line: str) -> Diagnosis | None:
    for number, (cause, fix) in _SIGNALS.items():
        if exit_code in (-number, 128 + number):
            return Diagnosis(kind=FailureKind.CRASHED, evidence=line, cause=cause, fix=fix)
    return None
