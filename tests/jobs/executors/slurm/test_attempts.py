"""The state of a job from what Slurm shows and what the job wrote down."""

from __future__ import annotations

import pytest

from enginehouse.jobs.base import JobState
from enginehouse.jobs.executors.slurm.attempts import QueueEntry, read_attempts, status_of

BEGUN = "submit 100\nstart 101 7\n"
TIMED_OUT = f"{BEGUN}next 101 7 8\nend 160 7 interrupted TIMEOUT 143\n"


def status(queue: list[tuple[int, str, str]], record: str):
    """The status of the job that was submitted as Slurm job 7."""
    entries = [QueueEntry(*entry) for entry in queue]
    return status_of(entries, read_attempts(record, first=7), first=7)


@pytest.mark.parametrize(
    ("queue", "record", "state", "reason"),
    [
        ([(7, "PENDING", "Resources")], "submit 100\n", JobState.PENDING, "Resources"),
        ([(7, "CONFIGURING", "None")], "submit 100\n", JobState.RUNNING, None),
        ([(7, "RUNNING", "None")], BEGUN, JobState.RUNNING, None),
        ([(7, "COMPLETING", "None")], f"{BEGUN}end 102 7 complete - 0\n", JobState.RUNNING, None),
        ([(7, "COMPLETED", "None")], f"{BEGUN}end 102 7 complete - 0\n", JobState.COMPLETE, None),
        ([], f"{BEGUN}end 102 7 complete - 0\n", JobState.COMPLETE, None),
        ([], f"{BEGUN}end 102 7 failed - 3\n", JobState.FAILED, None),
        ([(7, "TIMEOUT", "TimeLimit")], BEGUN, JobState.INTERRUPTED, "TIMEOUT"),
        ([(7, "OUT_OF_MEMORY", "None")], BEGUN, JobState.FAILED, "OUT_OF_MEMORY"),
        ([(7, "CANCELLED", "None")], "submit 100\n", JobState.CANCELLED, "CANCELLED"),
        ([], TIMED_OUT, JobState.INTERRUPTED, "TIMEOUT"),
        ([(8, "RUNNING", "None")], TIMED_OUT, JobState.RUNNING, None),
    ],
)
def test_states(queue, record, state, reason):
    """What the queue shows, and otherwise what the job wrote down."""
    job_status = status(queue, record)
    assert (job_status.state, job_status.reason) == (state, reason)


def test_a_successor_that_waits_is_pending_and_says_why():
    """It names what ended the last attempt, and what the next one waits for."""
    job_status = status([(7, "TIMEOUT", "TimeLimit"), (8, "PENDING", "Priority")], TIMED_OUT)
    assert job_status.state is JobState.PENDING
    assert job_status.reason is not None
    assert "TIMEOUT" in job_status.reason
    assert "Priority" in job_status.reason


def test_a_successor_that_never_runs_does_not_count():
    """Slurm is about to remove it."""
    record = f"{BEGUN}next 101 7 8\nend 160 7 complete - 0\n"
    queue = [(7, "COMPLETED", "None"), (8, "PENDING", "DependencyNeverSatisfied")]
    assert status(queue, record).state is JobState.COMPLETE


def test_an_end_of_an_earlier_submission_does_not_count():
    """A job that was submitted again has begun again."""
    record = f"submit 1\nstart 2 3\nend 4 3 failed - 1\n{BEGUN}"
    assert status([(3, "FAILED", "None"), (7, "RUNNING", "None")], record).state is JobState.RUNNING
    assert status([(3, "FAILED", "None")], record).state is JobState.INTERRUPTED


def test_an_attempt_that_did_not_say_how_it_ended_is_interrupted():
    """It was killed."""
    assert status([], BEGUN).state is JobState.INTERRUPTED


def test_a_job_that_left_no_trace_is_unknown():
    """It may have been removed before it began."""
    assert status([], "submit 100\n").state is JobState.UNKNOWN
    assert status([], "").state is JobState.UNKNOWN


def test_a_requeued_attempt_begins_again():
    """The Slurm job is the same."""
    record = f"{BEGUN}end 110 7 interrupted REQUEUED 143\nstart 120 7\nend 130 7 complete - 0\n"
    assert status([], record).state is JobState.COMPLETE


@pytest.mark.parametrize(
    "line",
    ["", "\n", "end", "end x 7", "start 1 nine", "end 1 7 complete", "end 1 7 comp - 0"],
)
def test_half_a_line_is_left_out(line):
    """A full disk, or a crash, cuts lines off."""
    assert [attempt.state for attempt in read_attempts(f"{BEGUN}{line}", first=7)] == [None]
