"""Where a job is, from what Slurm's queue shows and what the job wrote down itself.

Slurm forgets a job some minutes after its end unless accounting is on. So each attempt of a job
leaves lines in its folder:

    submit TIME                              by the executor, before sbatch
    start TIME JOB
    next TIME JOB SUCCESSOR                  the Slurm job that continues JOB if it is interrupted
    end TIME JOB STATE REASON EXIT_CODE      `-` where there is none
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from enginehouse.jobs.base import JobState, JobStatus

ATTEMPTS = "attempts.txt"
CANCEL = "cancel"
"""A file that the executor makes before it cancels a job; no attempt begins where it is."""

# https://slurm.schedmd.com/squeue.html#lang-en_SECTION_JOB-STATE-CODES
_WAITING = {"PENDING", "REQUEUE_FED", "REQUEUE_HOLD", "REQUEUED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
_ENDED = {
    "BOOT_FAIL": JobState.INTERRUPTED,
    "CANCELLED": JobState.CANCELLED,
    "DEADLINE": JobState.INTERRUPTED,
    "FAILED": JobState.FAILED,
    "NODE_FAIL": JobState.INTERRUPTED,
    "OUT_OF_MEMORY": JobState.FAILED,
    "PREEMPTED": JobState.INTERRUPTED,
    "REVOKED": JobState.CANCELLED,
    "TIMEOUT": JobState.INTERRUPTED,
}
_NEVER = "DependencyNeverSatisfied"  # a successor that Slurm is about to remove


@dataclass(frozen=True)
class QueueEntry:
    """A Slurm job as squeue shows it. `reason` says why it waits."""

    job: int
    state: str
    reason: str

    @property
    def is_live(self) -> bool:
        """Whether it waits or runs, or processes of it may be left."""
        return self.state not in {*_ENDED, "COMPLETED"}


@dataclass(frozen=True)
class Attempt:
    """One run of a job's command. `state` is None while it has not said how it ended."""

    job: int
    state: JobState | None = None
    reason: str | None = None
    exit_code: int | None = None


def read_attempts(text: str, *, first: int) -> Sequence[Attempt]:
    """The attempts in order, from the Slurm job `first` on. What cannot be read is left out."""
    attempts: list[Attempt] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 3 or not words[2].isdigit() or (job := int(words[2])) < first:
            continue
        event, *fields = words
        if event == "start":
            attempts.append(Attempt(job))
        elif (
            event == "end"
            and len(fields) == 5
            and fields[2] in tuple(JobState)
            and attempts
            and attempts[-1].job == job
        ):
            attempts[-1] = Attempt(job, JobState(fields[2]), *_ending(*fields[3:]))
    return attempts


def status_of(queue: Iterable[QueueEntry], attempts: Sequence[Attempt], *, first: int) -> JobStatus:
    """The state of the job whose first attempt is the Slurm job `first`.

    `queue` has the Slurm jobs of its folder, `attempts` what they wrote down.
    """
    entries = sorted((entry for entry in queue if entry.job >= first), key=lambda entry: entry.job)
    last = attempts[-1] if attempts else None
    waiting = [e for e in entries if e.state in _WAITING]
    if any(entry.is_live for entry in entries if entry not in waiting):
        return JobStatus(state=JobState.RUNNING)
    waiting = [entry for entry in waiting if entry.reason != _NEVER]
    if waiting and (last is None or last.state in (None, JobState.INTERRUPTED)):
        return JobStatus(state=JobState.PENDING, reason=_waiting_reason(waiting[0], last))
    if last is not None and last.state is not None:
        return JobStatus(state=last.state, reason=last.reason, exit_code=last.exit_code)
    known = {entry.job: entry for entry in entries}
    entry = known.get(last.job) if last else (entries[-1] if entries else None)
    if entry is not None and (state := _ENDED.get(entry.state)) is not None:
        return JobStatus(state=state, reason=entry.state)
    if last is not None:
        reason = f"Slurm job {last.job} is gone, and left no record of how it ended"
        return JobStatus(state=JobState.INTERRUPTED, reason=reason)
    reason = f"Slurm no longer knows job {first}, and there is no record that it started"
    return JobStatus(state=JobState.UNKNOWN, reason=reason)


def _ending(reason: str, exit_code: str) -> tuple[str | None, int | None]:
    return (None if reason == "-" else reason), (int(exit_code) if exit_code.isdigit() else None)


def _waiting_reason(entry: QueueEntry, last: Attempt | None) -> str:
    """Why it waits, and what it waits after."""
    if last is None:
        return entry.reason
    return f"{last.reason or 'interrupted'}; resumes as Slurm job {entry.job} ({entry.reason})"
