"""Why the hf server failed: finds, in its log, the line that says it first.

One process, and one traceback at its end: the exception that counts is the first of a chain that
was logged last. The texts are those of torch 2.13, transformers 5.19, aiohttp 3.14 and the
server's own; those that a CPU can provoke were provoked.
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

_LINE = re.compile(r"(?:(?P<level>[A-Z]+) [\d-]+ [\d:,]+ )?(?P<text>.*)")
_EXCEPTION = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit)\b(?!\w|\()")
_ARGPARSE = re.compile(r"hf_server: error: ")
_TRACEBACK = "Traceback (most recent call last)"
_READY = "listening on http://"
_STOPPED = "stopping"
_ENDED = "the generating thread ended"
_LONGEST = 400  # characters of evidence
_READ = 4000  # characters of a line

K = FailureKind
_LESS = "a smaller model, --max-model-len, --max-num-seqs or --max-num-batched-tokens"
_RULES = (
    Rule(
        K.DISK_FULL,
        r"No space left on device|Disk quota exceeded",
        "a disk is full",
        "see `df -h`; make room",
    ),
    Rule(
        K.PORT_TAKEN,
        r"[Aa]ddress already in use",
        "another program listens on the port",
        "leave --port out, so that a free one is leased, or end that program: `ss -ltnp` names it",
    ),
    Rule(
        K.UNKNOWN_FLAG,
        r"error: unrecognized arguments: (?P<flag>\S+)",
        "the server has no {flag}",
        "correct extra_args, or leave {flag} out",
    ),
    Rule(
        K.WRONG_VALUE,
        r"error: argument (?P<flag>[^:]+): (?P<problem>.*)",
        "the server refuses what {flag} was given: {problem}",
        "correct the value, or leave {flag} out",
    ),
    Rule(
        K.CONTEXT_TOO_LONG,
        r"max_model_len \((?P<wanted>\d+)\) is greater than the model's own \((?P<most>\d+)\)",
        "the model was made for at most {most} tokens, and --max-model-len says {wanted}",
        "--max-model-len {most}, or leave it out",
    ),
    Rule(
        K.CONTEXT_EXCEEDS_MEMORY,
        r"max_model_len \((?P<wanted>\d+)\) is greater than what the KV cache can hold "
        r"\((?P<most>\d+) tokens\)",
        "one request of {wanted} tokens does not fit into the KV cache, which holds {most}",
        "--max-model-len {most}, or leave it out; --kv-cache-memory-bytes in extra_args gives the "
        "cache more memory",
    ),
    Rule(
        K.NO_CACHE_MEMORY,
        r"No available memory for the KV cache",
        "weights and activations fill what the engine may take: nothing is left for the KV cache",
        "raise --gpu-memory-utilization, take a smaller model, or a smaller --dtype",
    ),
    Rule(
        K.OUT_OF_MEMORY,
        r"CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED",
        "the GPU's memory ran out",
        f"see with `nvidia-smi` who else uses it; else {_LESS}, or a smaller "
        "--gpu-memory-utilization, which leaves more beside the KV cache",
    ),
    Rule(
        K.HOST_MEMORY,
        r"DefaultCPUAllocator: (?:can't allocate|not enough) memory|std::bad_alloc|^MemoryError\b"
        r"|Cannot allocate memory|Unable to allocate .* for an array",
        "this machine's own memory (not the GPU's) ran out, or a limit on it was met "
        "(`ulimit -v`, a container's or a batch job's)",
        f"see `free -g` and `ulimit -v`; give the job more memory, or take less: {_LESS}",
    ),
    Rule(
        K.MODEL_GATED,
        r"GatedRepoError|access a gated repo\b|Cannot access gated repo",
        "the hub gives this model only to accounts that accepted its conditions",
        "accept them on the model's page, then set HF_TOKEN to a token of that account",
    ),
    Rule(
        K.MODEL_INCOMPLETE,
        r"does not appear to have (?:a file named|files named) (?P<file>.+?)(?:\.? Checkout|$)"
        r"|[Nn]o file named (?P<weights>[^\s,]+)|Should have a `model_type` key"
        r"|Can't load (?:the )?tokenizer|backend tokenizer",
        "the model's folder lacks its configuration, its weights or its tokenizer {file}{weights}",
        "fetch it again, or copy what is missing (config.json, tokenizer.json, *.safetensors) from "
        "the base model's folder",
    ),
    Rule(
        K.MODEL_NOT_FOUND,
        r"not a valid model identifier|RepositoryNotFoundError|Repo id must be|HFValidationError"
        r"|We couldn't connect to|OfflineModeIsEnabled|LocalEntryNotFoundError",
        "there is no such model: neither a folder with a config.json, nor a handle that the hub "
        "knows and that could be fetched",
        "check the spelling: a folder's path, or owner/name; a private model needs HF_TOKEN",
    ),
    Rule(
        K.MODEL_BROKEN,
        r"SafetensorError|[Hh]eader ?too ?(?:large|small)|InvalidHeader|MetadataIncompleteBuffer"
        r"|PytorchStreamReader failed|JSONDecodeError|is not a valid JSON file"
        r"|ignore_mismatched_sizes|size mismatch for",
        "a file of the model is broken or of another model: cut off, or not what its name says",
        "compare the sizes with the source's and fetch it again; `git lfs pull` if it is a Git LFS "
        "pointer",
    ),
    Rule(
        K.REMOTE_CODE,
        r"contains custom code which must be executed|requires you to execute the"
        r"|trust_remote_code=True",
        "the model comes with Python code of its own, which is not run unasked",
        "read that code; if you trust it: --trust-remote-code",
    ),
    Rule(
        K.UNSUPPORTED_MODEL,
        r"model type `(?P<type>[^`]*)` but Transformers does not recognize"
        r"|Unrecognized (?:configuration class|model)|generates no text"
        r"|(?P<class>\w+) is not supported for AutoModelForCausalLM",
        "this transformers does not know the model's architecture, or not as one that generates "
        "text: {type}{class}",
        "see `architectures` in the model's config.json; --python with an install that knows it, "
        "or another engine",
    ),
    Rule(
        K.QUANTIZATION,
        r"(?:bitsandbytes|auto-?gptq|gptqmodel|autoawq|compressed.tensors|optimum)\b.*"
        r"(?:install|required|requires)|quantiz\w+ .*(?:not supported|requires)",
        "the checkpoint is quantized in a way that this environment cannot compute with",
        "use the model's unquantized weights, or --engine vllm",
    ),
    Rule(
        K.CUDA_MISMATCH,
        r"driver on your system is too old|driver version is insufficient"
        r"|no kernel image is available|CUDA capability sm_\d+ is not compatible",
        "this build of torch does not fit NVIDIA's driver or this GPU",
        "`nvidia-smi` shows the newest CUDA that the driver can do; update the driver, or use a "
        "build for it with --python PATH",
    ),
    Rule(
        K.NO_GPU,
        r"--device cuda: torch finds no CUDA GPU|Found no NVIDIA driver|No CUDA GPUs are available",
        "a CUDA GPU was wanted, and torch sees none",
        "leave --device out; or see whether `nvidia-smi` works here, CUDA_VISIBLE_DEVICES is "
        "right, and the environment is the cuda variant",
    ),
    Rule(
        K.MISSING_LIBRARY,
        r"(?P<library>lib[\w.+-]+\.so[\w.]*): cannot open shared object file",
        "a shared library is not found: {library}",
        "make the environment anew: `enginehouse envs remove KEY`, `enginehouse install hf`",
    ),
    Rule(
        K.WRONG_LIBRARY,
        r"ModuleNotFoundError: No module named '(?P<name>[^']+)'|^ImportError: (?P<what>.*)"
        r"|undefined symbol: ",
        "the environment lacks something that the server imports, or has it in another version: "
        "{name}{what}",
        "make the environment anew: `enginehouse envs remove KEY`, `enginehouse install hf`; or "
        "install it into the one that --python names",
    ),
    Rule(
        K.CRASHED,
        r"Fatal Python error: |CUDA error: an illegal memory access"
        r"|CUDA error: device-side assert|uncorrectable ECC error",
        "native code of torch, or the GPU, crashed",
        "start it again; if it happens again, see `dmesg -T | grep -i xid` for faults of the GPU",
    ),
)
_SIGNALS = {
    signal.SIGILL: (
        "the processor lacks instructions that this build of torch was compiled for",
        "use another machine, or a build for this one with --python PATH",
    ),
    signal.SIGBUS: (
        "the shared memory or the disk ran full while it was being written (SIGBUS)",
        "look at `df -h /dev/shm /tmp`; in a container, start it with a larger --shm-size",
    ),
    signal.SIGSEGV: (
        "native code of torch crashed (SIGSEGV)",
        "start it again; if it happens again, report it with the log",
    ),
    signal.SIGABRT: (
        "native code gave up (SIGABRT)",
        "read the last lines of the log: what gave up says why there",
    ),
}


@dataclass
class _Reading:
    """What a log has said so far of the newest failure."""

    around: Surroundings = field(default_factory=Surroundings)
    ready: bool = False
    stopped: bool = False
    known: Diagnosis | None = None
    first: str | None = None

    def read(self, lines: Iterable[str]) -> None:
        for line in lines:
            found = _LINE.match(line[:_READ])
            assert found is not None
            text, level = found["text"].rstrip(), found["level"]
            if level == "INFO" and _READY in text:
                self.ready = True
                self.known = self.first = None
            elif level == "INFO" and text == _STOPPED:
                self.stopped = self.first is None
            elif level == "ERROR":
                # A step that failed, and that the server survived, unless nothing follows it.
                self.known = self.first = None
            elif _ENDED not in text:
                self._judge(text)

    def _judge(self, text: str) -> None:
        raised = _EXCEPTION.match(text) or _ARGPARSE.match(text)
        whole = raised or text.startswith(("Fatal Python error", "terminate called"))
        if not whole and self.first is None:
            return
        if text.startswith((" ", _TRACEBACK)):
            return
        if whole:
            self.first = self.first or text
        self.known = self.known or recognise(text, rules=_RULES, around=self.around)

    def diagnosis(self, exit_code: int | None) -> Diagnosis | None:
        """What the log says, or else the exit code."""
        for number, (cause, fix) in _SIGNALS.items():
            if exit_code in (-number, 128 + number):
                return Diagnosis(kind=K.CRASHED, evidence=self.first or "", cause=cause, fix=fix)
        if exit_code in (-signal.SIGKILL, 128 + signal.SIGKILL):
            return _KILLED
        if self.stopped:
            return _TOLD_TO_STOP
        if self.known is not None or self.first is None:
            return self.known
        if self.ready:
            return Diagnosis(
                kind=K.ENGINE_DIED,
                evidence=self.first,
                cause="an error ended the server while it was answering requests",
                fix="serve again, or `enginehouse resume RUN`; the log has the traceback",
            )
        return Diagnosis(kind=K.UNKNOWN, evidence=self.first, cause=self.first, fix=READ_THE_LOG)


_KILLED = Diagnosis(
    kind=K.KILLED,
    evidence="",
    cause="the server ended at once, without a word: killed, most likely, by the kernel because "
    "memory ran out, by a batch system at a limit, or by `kill -9`",
    fix="ask the kernel whether it was for memory: `dmesg -T | grep -i 'killed process'` (in a "
    f"container: oom_kill in /sys/fs/cgroup/memory.events); if so, {_LESS}",
)
_TOLD_TO_STOP = Diagnosis(
    kind=K.STOPPED,
    evidence=_STOPPED,
    cause="somebody told the server to stop (SIGTERM or SIGINT); it did not fail",
    fix="find out who: a batch system at its time limit, a shutdown, `kill`; then start it again, "
    "or `enginehouse resume RUN`",
)


def diagnose(log: Path, *, exit_code: int | None) -> Diagnosis | None:
    """The cause in the server's log, or what the exit code says; None if neither says anything.

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
