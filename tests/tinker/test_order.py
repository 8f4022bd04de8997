"""The line of one model's jobs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from enginehouse.tinker.order import Job, Line


def job(seq_id: int, *, repeated: bool = False) -> Job:
    """A job of any kind."""
    future: Any = SimpleNamespace(kind="forward_backward")
    return Job(future=future, seq_id=seq_id, repeated=repeated)


def test_only_the_next_job_and_what_follows_it_without_a_gap_is_ready():
    """Whatever has arrived before it."""
    line = Line(first=1)
    for seq_id in (4, 2):
        line.add(job(seq_id))
    assert line.ready() is None
    first = job(1)
    line.add(first)
    assert line.ready() is first
    assert [line.ready(after) is not None for after in range(4)] == [True, True, False, True]
    line.finish(first)
    assert line.next == 2
    assert [waiting.seq_id for waiting in line] == [2, 4]


def test_a_line_that_begins_again_keeps_those_who_wait():
    """Jobs that were done come before them, in order."""
    line = Line()
    line.add(job(0))
    line.finish(next(iter(line)))
    line.add(job(1))
    line.restart([job(0, repeated=True)], first=0)
    assert [(waiting.seq_id, waiting.repeated) for waiting in line] == [(0, True), (1, False)]
    assert line.next == 0


def test_seq_ids_may_be_very_large():
    """The SDK's are int64."""
    line = Line(first=10**18)
    line.add(job(10**18))
    line.finish(next(iter(line)))
    assert line.next == 10**18 + 1
