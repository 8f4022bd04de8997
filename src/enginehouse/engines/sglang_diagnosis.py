"""Why an SGLang failed: finds, in its log, the line that says it first.

As the sources of 0.5.23 have it, and as it was seen where a CPU can provoke it: a time and the
process in brackets, no level; an exception that ends a process follows "… hit an exception:" as a
bare traceback, and the main process then ends everything, itself included, with SIGKILL.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from enginehouse.engines.diagnosis import (
    READ_THE_LOG,
    Diagnosis,
    FailureKind,
    Rule,
    Surroundings,
    recognise,
)

_LINE = re.compile(r"(?:\[\d{4}-[\d-]+ [\d:.]+(?: [A-Z]+\d+)*\] )?(?P<text>.*)")
_EXCEPTION = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception)\b(?!\w|\()|Exception: ")
_FATAL = re.compile(
    r"(?P<who>\w+) hit an exception: |watchdog timeout \(self\.watchdog_timeout=\S+, "
    r"self\.soft=False|Initialization failed\. warmup error|Subprocess \S+ \(pid=\d+\) crashed "
    r"|scheduler died during initialization"
)
# They say that another process or another line has the cause.
_POINTER = re.compile(
    r"Initialization failed\. Please see the error messages above|scheduler died during init"
    r"|Received sigquit from a child process|SIGQUIT received"
)
_EXIT_CODE = re.compile(r"\(exit code: (?P<starting>-\d+)\)|crashed with exit code (?P<later>-\d+)")
_READY = "The server is fired up and ready to roll!"
_STOPPED = "SIGTERM received."
_CODE = ("    ", "  File ", "server_args=")
_LONGEST = 400  # characters of evidence
_READ = 4000  # characters of a line

K = FailureKind
_LESS_STATIC = (
    "a smaller --gpu-memory-utilization (SGLang's --mem-fraction-static: weights and KV cache "
    "only; what a step computes needs the rest), --max-num-seqs or --max-num-batched-tokens"
)
_ANEW = "make the environment anew: `enginehouse envs remove KEY`, `enginehouse install sglang`"
RULES = (
    Rule(
        K.DISK_FULL,
        r"No space left on device|Disk quota exceeded",
        "a disk is full, or /dev/shm, through which the engine's processes talk",
        "see `df -h /dev/shm /tmp ~`; make room (in a container: a larger --shm-size)",
    ),
    Rule(
        K.PORT_TAKEN,
        r"[Aa]ddress already in use|(?P<name>\w+) at (?P<port>\d+) is not available in \d+ seconds",
        "another program listens on a port that the server needs {port}",
        "leave --port out, so that a free one is leased, or end that program: `ss -ltnp` names it",
    ),
    Rule(
        K.UNKNOWN_FLAG,
        r"error: unrecognized arguments: .*?(?P<flag>--?[A-Za-z]\S*)",
        "this version of SGLang has no {flag} (any more)",
        "correct it or leave it out; `sglang serve --help` of its environment lists the flags",
    ),
    Rule(
        K.WRONG_VALUE,
        r"error: argument (?P<flag>[^:]+): (?P<problem>.*)",
        "SGLang refuses what {flag} was given: {problem}",
        "correct the value, or leave {flag} out",
    ),
    Rule(
        K.NO_CACHE_MEMORY,
        r"Loaded weights leave no GPU memory for the KV cache under --mem-fraction-static="
        r"(?P<is>[\d.]+)\. Raise --mem-fraction-static above (?P<least>[\d.]+)",
        "the weights alone need more of the GPU than the share of {is} that they and the KV cache "
        "may take",
        "--gpu-memory-utilization above {least}; where that is near 1, a larger GPU, more of them "
        "(--tensor-parallel-size), or a smaller or quantized model",
    ),
    Rule(
        K.NO_CACHE_MEMORY,
        r"Not enough memory\. Please try to increase --mem-fraction-static"
        r"(?:\.\s+Current value: mem_fraction_static=(?P<is>[\d.]+\d))?",
        "beside the weights no memory is left for the KV cache {is}",
        "a larger --gpu-memory-utilization (SGLang's --mem-fraction-static), a larger GPU or more "
        "of them (--tensor-parallel-size), or a smaller model",
    ),
    Rule(
        K.MEMORY_TAKEN,
        r"RuntimeError: The memory capacity is unbalanced\. Some GPUs may be occupied",
        "one of the GPUs has much less free memory than the others: another program is on it",
        "`nvidia-smi` names it; end it, or choose other GPUs with CUDA_VISIBLE_DEVICES",
    ),
    Rule(
        K.OUT_OF_MEMORY,
        r"Capture (?:prefill CUDA|cuda) graph failed: .*out of memory",
        "capturing CUDA graphs needs more GPU memory than weights and KV cache left free",
        _LESS_STATIC + "; or --enforce-eager, which is much slower",
    ),
    Rule(
        K.OUT_OF_MEMORY,
        r"OutOfMemoryError|CUDA out of memory|(?:Prefill|Decode) out of memory\. Try to lower",
        "the GPU's memory ran out",
        _LESS_STATIC + "; `nvidia-smi` shows whether another program takes some",
    ),
    Rule(
        K.CONTEXT_TOO_LONG,
        r"context_length \((?P<wanted>\d+)\) is greater than the derived context_length "
        r"\((?P<most>\d+)\).*To allow overriding",
        "the model was made for at most {most} tokens, and --max-model-len says {wanted}",
        "--max-model-len {most}, or leave it out; --env SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1"
        " insists, at the price of wrong answers",
    ),
    Rule(
        K.WRONG_VALUE,
        r"you need to specify both --max-lora-rank and --lora-target-modules",
        "SGLang must know the adapters' largest rank and modules before it has seen one",
        "set max_lora_rank, and --lora-target-modules all in extra_args",
    ),
    Rule(
        K.WRONG_VALUE,
        r"LoRA adapter (?P<name>\S+) with rank (?P<rank>\d+) is incompatible with the current",
        "the adapter {name} has rank {rank}, more than --max-lora-rank, or other modules than "
        "--lora-target-modules",
        "--max-lora-rank {rank} (at least), and --lora-target-modules all in extra_args",
    ),
    Rule(
        K.PARALLELISM,
        r"AssertionError: (?P<what>\d+) is not divisible by (?P<size>\d+)",
        "something of the model ({what} heads or columns) cannot be shared out among {size} GPUs",
        "a --tensor-parallel-size that divides {what}; --pipeline-parallel-size has no such rule",
    ),
    Rule(
        K.PARALLELISM,
        r"invalid device ordinal",
        "more GPUs are asked for than can be seen",
        "lower tensor, pipeline or data parallelism, or show more GPUs (CUDA_VISIBLE_DEVICES)",
    ),
    Rule(
        K.QUANTIZATION,
        r"quantization method (?P<method>\S+) is not supported for the current GPU\. Minimum "
        r"capability: (?P<needs>\d+)\. Current capability: (?P<has>\d+)",
        "{method} needs a GPU of compute capability {needs} (90 is 9.0); this one has {has}",
        "use the model's unquantized weights, or a newer GPU",
    ),
    Rule(
        K.UNSUPPORTED_DTYPE,
        r"torch\.(?P<dtype>\w+) is not supported for quantization method (?P<method>\w+)\. "
        r"Supported dtypes: \[(?P<known>[^\]]*)",
        "weights quantized with {method} cannot be computed with in {dtype}",
        "--dtype with one of: {known}",
    ),
    Rule(
        K.MODEL_GATED,
        r"GatedRepoError|access a gated repo\b|Cannot access gated repo",
        "the hub gives this model only to accounts that accepted its conditions",
        "accept them on the model's page, then set HF_TOKEN to a token of that account",
    ),
    Rule(
        K.MODEL_NOT_FOUND,
        r"LocalEntryNotFoundError|OfflineModeIsEnabled|We couldn't connect to"
        r"|RepositoryNotFoundError|RevisionNotFoundError|HFValidationError"
        r"|not a valid model identifier|Repo id must be in the form",
        "there is no such folder with a config.json, and the hub has or gave no such model",
        "check the spelling: a folder's path, or owner/name; a private model needs HF_TOKEN",
    ),
    Rule(
        K.MODEL_INCOMPLETE,
        r"Cannot find any model weights|Can't load tokenizer"
        r"|does not appear to have a file named (?P<file>\S+)",
        "the model's folder lacks its weights or its tokenizer",
        "fetch it again, or copy what is missing from the base model's folder",
    ),
    Rule(
        K.MODEL_BROKEN,
        r"SafetensorError|PytorchStreamReader failed|JSONDecodeError|is not a valid JSON file",
        "a file of the model is broken: cut off, or not what its name says",
        "compare the sizes with the source's and fetch it again; `git lfs pull` if it is a Git "
        "LFS pointer",
    ),
    Rule(
        K.REMOTE_CODE,
        r"contains custom code which must be executed|pass the argument `trust_remote_code=True`"
        r"|setting `trust_remote_code=True`",
        "the model comes with Python code of its own, which is not run unasked",
        "read that code; if you trust it: --trust-remote-code",
    ),
    Rule(
        K.UNSUPPORTED_MODEL,
        r"Model architectures (?P<names>\[.*?\]) (?:are not supported|failed to be inspected)"
        r"|has model type `(?P<type>[^`]*)` but Transformers does not recognize"
        r"|Cannot find model module\. '(?P<missing>\w+)' is not a registered model",
        "this SGLang does not know the model's architecture {names}{type}{missing}",
        "take an engine that does: another version with --python PATH, or --engine vllm",
    ),
    Rule(
        K.WRONG_BUILD,
        r"(?P<package>flashinfer_python|sglang-kernel) (?:is installed with version (?P<is>\S+), "
        r"which is less than|with) (?:the )?minimum required version (?P<least>[\w.]+\w)",
        "{package} {is} does not fit this SGLang, which needs {least}",
        _ANEW + "; install nothing into it",
    ),
    Rule(
        K.CUDA_MISMATCH,
        r"driver on your system is too old|driver version is insufficient|PTX was compiled with an "
        r"unsupported toolchain|[Dd]river/library version mismatch",
        "NVIDIA's driver is too old for the CUDA 13 that this build was made with",
        "`nvidia-smi` shows the newest CUDA that the driver can do; update the driver, or use a "
        "build for that CUDA with --python PATH",
    ),
    Rule(
        K.CUDA_MISMATCH,
        r"no kernel image is available|CUDA capability sm_\d+ is not compatible"
        r"|\[sgl_kernel\] CRITICAL: Could not load any common_ops library",
        "the kernels of this build have no code for this GPU, or were made for another CUDA",
        "use another GPU, or a build for this one with --python PATH; otherwise " + _ANEW,
    ),
    Rule(
        K.NO_GPU,
        r"Found no NVIDIA driver|No CUDA GPUs are available|No CUDA devices found|no CUDA-capable "
        r"device|No accelerator \(CUDA, .*\) or platform plugin is available"
        r"|libcuda\.so\S*: cannot open",
        "SGLang needs an NVIDIA GPU and sees none",
        "see whether `nvidia-smi` works here and CUDA_VISIBLE_DEVICES is right (in a container: "
        "--gpus all); without a GPU: --engine vllm or hf",
    ),
    Rule(
        K.NO_COMPILER,
        r"Could not find nvcc|nvcc: not found|Ninja is required|CUDA_HOME environment variable is "
        r"not set|Failed to find C compiler|No such file or directory: '(?:ninja|gcc|nvcc\S*)'",
        "compiling kernels for this GPU takes CUDA's nvcc and a C++ compiler, which it lacks",
        "install the CUDA toolkit and g++, and set CUDA_HOME",
    ),
    Rule(
        K.TOO_SLOW,
        r"watchdog timeout \(self\.watchdog_timeout=(?P<seconds>[\d.]+), self\.soft=False",
        "one step took longer than {seconds} s, and SGLang's watchdog ended it: a hang between "
        "GPUs, or kernels that were compiled",
        "start it again; if it comes back, --watchdog-timeout SECONDS in extra_args, and look for "
        "the stacks that the log has before this line",
    ),
    Rule(
        K.CRASHED,
        r"CUDA error: an illegal memory access|CUDA error: device-side assert|uncorrectable ECC"
        r"|Fatal Python error: ",
        "native code of the engine, or the GPU, crashed",
        "start it again; if it happens again, leave out what is special (--enforce-eager, no "
        "quantization), see `dmesg -T | grep -i xid`, and report it to SGLang",
    ),
)


@dataclass
class _Reading:
    """What a log has said so far. After `ready`, only what ends a process counts."""

    ready: bool = False
    fatal: bool = False
    stopped: bool = False
    known: Diagnosis | None = None
    exception: str | None = None
    died: str | None = None
    exit_code: int | None = None

    def read(self, lines: Iterable[str]) -> None:
        for line in lines:
            found = _LINE.match(line[:_READ])
            assert found is not None
            text = found["text"].rstrip()
            if _READY in text:
                # What was said before did not keep it from becoming ready.
                self.ready, self.known, self.exception = True, None, None
            if _STOPPED in text and not self.fatal:
                self.stopped = True
            if not text.startswith(_CODE):
                self._judge(text)

    def _judge(self, text: str) -> None:
        if self.died is None and (code := _EXIT_CODE.search(text)):
            self.died = text
            self.exit_code = int(code["starting"] or code["later"])
        if _FATAL.search(text) and not self.fatal:
            self.fatal = True
            if self.known is None:
                self.exception = None
        if (self.ready and not self.fatal) or _POINTER.search(text):
            return
        if self.known is None:
            self.known = recognise(text, rules=RULES, around=Surroundings())
        if self.exception is None and _EXCEPTION.match(text):
            self.exception = text

    def diagnosis(self, exit_code: int | None) -> Diagnosis | None:
        if self.known is not None:
            return self.known
        if self.exception is not None:
            return _ended_by(self.exception, ready=self.ready)
        if self.stopped:
            return _told_to_stop()
        ended = self.exit_code if self.exit_code is not None else exit_code
        return _by_signal(ended, self.died or "")


def diagnose(log: Path, *, exit_code: int | None) -> Diagnosis | None:
    """The first cause in SGLang's log, or what the exit code says; None if neither says anything.

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
    short = found.evidence[:_LONGEST] + "…"
    cause = short if found.cause == found.evidence else found.cause
    return Diagnosis(kind=found.kind, evidence=short, cause=cause, fix=found.fix)


def _ended_by(line: str, *, ready: bool) -> Diagnosis:
    if not ready:
        return Diagnosis(kind=K.UNKNOWN, evidence=line, cause=line, fix=READ_THE_LOG)
    return Diagnosis(
        kind=K.ENGINE_DIED,
        evidence=line,
        cause="an error in the engine ended it while it was answering requests",
        fix="serve again, or `enginehouse resume RUN`; if the same line comes back, one of the "
        "requests in flight provokes it: report it to SGLang with the log",
    )


def _told_to_stop() -> Diagnosis:
    return Diagnosis(
        kind=K.STOPPED,
        evidence=_STOPPED,
        cause="somebody told the server to stop (SIGTERM); it did not fail",
        fix="find out who: a batch system at its time limit, a shutdown, `kill`; then start it "
        "again, or `enginehouse resume RUN`",
    )


def _by_signal(code: int | None, line: str) -> Diagnosis | None:
    number = -code if code is not None and code < 0 else (code or 0) - 128
    if number == signal.SIGKILL:
        return Diagnosis(
            kind=K.KILLED,
            evidence=line,
            cause="one of the engine's processes was killed (SIGKILL), most likely by the kernel "
            "because memory ran out, by a batch system at a limit, or by `kill -9`",
            fix="ask the kernel: `dmesg -T | grep -i 'killed process'`; if it was for memory, give "
            "it more of the machine's memory, or start fewer processes beside it",
        )
    if number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE):
        return Diagnosis(
            kind=K.CRASHED,
            evidence=line,
            cause=f"native code of the engine crashed ({signal.Signals(number).name})",
            fix="start it again; if it happens again, try --enforce-eager, and report it with the "
            "log",
        )
    return None
