"""What an end without an error in words means: signals, and being told to stop."""

from __future__ import annotations

import signal

from enginehouse.diagnosis.kinds import Diagnosis, FailureKind
from enginehouse.diagnosis.profile import LogProfile

_SHELL = 128  # what a shell adds to the number of a signal
_ALL = frozenset(signal.Signals)
KERNEL = (
    "check whether the kernel killed it for memory: `dmesg -T | grep -i 'killed process'` (in a "
    "container: oom_kill in /sys/fs/cgroup/memory.events)"
)
_KILLED_FIX = (
    f"{KERNEL}; if so, give it more memory or let it use less: a smaller model, a smaller "
    "--max-model-len, fewer processes at once"
)
_CRASHED_FIX = (
    "start it again; if it crashes again, try --enforce-eager, and report it with the log"
)
_SIGNALS = {
    signal.SIGILL: (
        "the processor lacks instructions that this build of {engine} was compiled for (SIGILL)",
        "use another machine, or a build for this one with --python PATH",
    ),
    signal.SIGBUS: (
        "the shared memory or a disk ran full while it was being written (SIGBUS)",
        "check `df -h /dev/shm /tmp`; start a container with a larger --shm-size",
    ),
    signal.SIGSEGV: ("native code of {engine} crashed (SIGSEGV)", _CRASHED_FIX),
    signal.SIGFPE: ("native code of {engine} crashed (SIGFPE)", _CRASHED_FIX),
    signal.SIGABRT: (
        "native code of {engine} aborted (SIGABRT)",
        "read the last lines of the log, which say why; otherwise try --enforce-eager",
    ),
}


def signalled(exit_code: int | None, *, profile: LogProfile, evidence: str) -> Diagnosis | None:
    """What an exit code of Python (-9) or of a shell (137) means; None if it is not a signal's."""
    if exit_code is None or not (exit_code < 0 or exit_code > _SHELL):
        return None
    number = -exit_code if exit_code < 0 else exit_code - _SHELL
    if number == signal.SIGKILL:
        return killed(profile=profile, evidence=evidence)
    if number in (signal.SIGTERM, signal.SIGINT):
        return told_to_stop(evidence)
    known = {**_SIGNALS, **profile.signals}.get(signal.Signals(number)) if number in _ALL else None
    if known is None:
        return None
    cause, fix = known
    return Diagnosis(
        kind=FailureKind.CRASHED,
        evidence=evidence,
        cause=cause.format(engine=profile.title),
        fix=fix,
    )


def killed(*, profile: LogProfile, evidence: str) -> Diagnosis:
    """A process ended without an error, as SIGKILL ends it."""
    what = "one of the engine's processes" if evidence else "the server"
    return Diagnosis(
        kind=FailureKind.KILLED,
        evidence=evidence,
        cause=f"{what} was killed (SIGKILL) and could not report an error: most likely by the "
        "kernel because memory ran out, by a batch system at a limit, or by `kill -9`",
        fix=profile.killed_fix or _KILLED_FIX,
    )


def told_to_stop(evidence: str) -> Diagnosis:
    """A server that ended because it was asked to."""
    return Diagnosis(
        kind=FailureKind.STOPPED,
        evidence=evidence,
        cause="the server was told to stop (SIGTERM or SIGINT); it did not fail",
        fix="find out what sent the signal (a batch system at its time limit, a shutdown, `kill`), "
        "then start it again, or continue with `enginehouse resume RUN`",
    )


def died_while_serving(evidence: str, *, profile: LogProfile) -> Diagnosis:
    """An error that no rule knows ended an engine that was answering requests."""
    return Diagnosis(
        kind=FailureKind.ENGINE_DIED,
        evidence=evidence,
        cause="an error in the engine ended it while it was answering requests",
        fix="start it again, or continue with `enginehouse resume RUN`; if it happens again, one "
        f"of the requests provokes it: report it to {profile.title} with the log",
    )


def still_waiting(evidence: str) -> Diagnosis:
    """A server that has not failed: it was waiting when the log ended."""
    return Diagnosis(
        kind=FailureKind.WAITING,
        evidence=evidence,
        cause=f"it was still waiting when the log ended: {evidence}",
        fix="check whether what it waits for can happen (another node or process, a download); a "
        "larger --start-timeout helps only if it can",
    )
