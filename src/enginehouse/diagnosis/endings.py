"""What an end without words means: signals, and being told to stop."""

from __future__ import annotations

import signal

from enginehouse.diagnosis.kinds import Diagnosis, FailureKind
from enginehouse.diagnosis.profile import LogProfile

_KILLED_FIX = (
    "ask the kernel whether it was for memory: `dmesg -T | grep -i 'killed process'` (in a "
    "container: oom_kill in /sys/fs/cgroup/memory.events); if so, give it more memory or take "
    "less: a smaller model, a smaller --max-model-len, fewer processes beside it"
)
_SIGNALS = {
    signal.SIGILL: (
        "the processor lacks instructions that this build of {engine} was compiled for (SIGILL)",
        "use another machine, or a build for this one with --python PATH",
    ),
    signal.SIGBUS: (
        "the shared memory or the disk ran full while it was being written (SIGBUS)",
        "look at `df -h /dev/shm /tmp`; in a container, start it with a larger --shm-size",
    ),
    signal.SIGSEGV: (
        "native code of {engine} crashed (SIGSEGV)",
        "start it again; if it happens again, try --enforce-eager, and report it with the log",
    ),
    signal.SIGFPE: (
        "native code of {engine} crashed (SIGFPE)",
        "start it again; if it happens again, try --enforce-eager, and report it with the log",
    ),
    signal.SIGABRT: (
        "native code of {engine} gave up (SIGABRT)",
        "read the last lines of the log: what gave up says why there; else try --enforce-eager",
    ),
}


def signalled(exit_code: int | None, *, profile: LogProfile, evidence: str) -> Diagnosis | None:
    """What an exit code of Python (-9) or of a shell (137) means; None if no signal is in it."""
    for number, (cause, fix) in {**_SIGNALS, **profile.signals}.items():
        if exit_code in (-number, 128 + number):
            return Diagnosis(
                kind=FailureKind.CRASHED,
                evidence=evidence,
                cause=cause.format(engine=profile.title),
                fix=fix,
            )
    if exit_code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return killed(profile=profile, evidence=evidence)
    stops = (signal.SIGTERM, signal.SIGINT)
    if exit_code in [code for number in stops for code in (-number, 128 + number)]:
        return told_to_stop(evidence)
    return None


def killed(*, profile: LogProfile, evidence: str) -> Diagnosis:
    """Nothing was said, and SIGKILL leaves no words."""
    what = "one of the engine's processes" if evidence else "the server"
    return Diagnosis(
        kind=FailureKind.KILLED,
        evidence=evidence,
        cause=f"{what} ended at once, without a word: killed (SIGKILL), most likely by the kernel "
        "because memory ran out, by a batch system at a limit, or by `kill -9`",
        fix=profile.killed_fix or _KILLED_FIX,
    )


def told_to_stop(evidence: str) -> Diagnosis:
    """It ended as it was asked to."""
    return Diagnosis(
        kind=FailureKind.STOPPED,
        evidence=evidence,
        cause="the server was told to stop (SIGTERM or SIGINT); it did not fail",
        fix="find out what sent the signal: a batch system at its time limit, a shutdown, `kill`; "
        "then start it again, or `enginehouse resume RUN`",
    )


def died_while_serving(evidence: str, *, profile: LogProfile) -> Diagnosis:
    """An error that no rule knows ended an engine that was answering requests."""
    return Diagnosis(
        kind=FailureKind.ENGINE_DIED,
        evidence=evidence,
        cause="an error in the engine ended it while it was answering requests",
        fix="serve again, or `enginehouse resume RUN`; if the same line comes back, one of the "
        f"requests in flight provokes it: report it to {profile.title} with the log",
    )


def still_waiting(evidence: str) -> Diagnosis:
    """It has not failed: it was waiting when the log ended."""
    return Diagnosis(
        kind=FailureKind.WAITING,
        evidence=evidence,
        cause=f"it was still waiting when the log ended: {evidence}",
        fix="see whether what it waits for can come (another node, another process, a download); "
        "a larger --start-timeout helps only if it can",
    )
