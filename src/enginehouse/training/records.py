"""The evaluations of a training, and their journal."""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path

import msgspec

from enginehouse.results.summary import Figure, Report
from enginehouse.store.journal import Journal, read_journal

JOURNAL = "evaluations.jsonl"
_log = logging.getLogger(__name__)


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """One task's headline, named `name`; None if too many samples failed."""

    task: str
    name: str
    headline: Figure | None


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """One evaluation of a model in training, at `step`; it took `seconds` of the loop's time.

    `run` is the run's folder, None if there was none yet. `checkpoint` is the saved folder, None
    unless it was kept. `moved_bytes` and `freed_bytes` are those of `device_memory.Vacated`.
    `error` says what went wrong; there may be scores nevertheless.
    """

    step: int
    started: datetime
    seconds: float
    scores: tuple[Score, ...] = ()
    run: str | None = None
    checkpoint: str | None = None
    moved_bytes: int = 0
    freed_bytes: int | None = None
    error: str | None = None

    @property
    def headline(self) -> Figure | None:
        """The first task's headline."""
        return self.scores[0].headline if self.scores else None


def read_evaluations(folder: Path | str) -> list[Evaluation]:
    """Every evaluation in the journal of a training's `folder`, in order; none without a journal.

    Raises StoreError.
    """
    return [entry.record for entry in read_journal(Path(folder) / JOURNAL, Evaluation)]


def append_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Append to the journal, in one write; a broken end is moved aside, with a warning.

    Raises StoreError, also for a file that is not such a journal.
    """
    with Journal(folder / JOURNAL, first=Evaluation) as journal:
        if journal.repair:
            _log.warning("%s", journal.repair)
        journal.append(evaluation)


def scores_of(report: Report) -> tuple[Score, ...]:
    """The headline of every task."""
    return tuple(
        Score(task=task.task, name=task.headline_name, headline=task.headline)
        for task in report.tasks
    )


def problems_of(report: Report) -> str | None:
    """Why tasks have no headline; None where all have one."""
    lines = [f"{t.task}: {t.no_headline}" for t in report.tasks if t.headline is None]
    return "; ".join(lines) or None


def in_words(evaluation: Evaluation) -> str:
    """A line for people to read."""
    lines = [f"step {evaluation.step}"]
    for score in evaluation.scores:
        if (figure := score.headline) is not None:
            line = f"{score.task} {figure.value:.1%}"
            if (interval := figure.interval) is not None:
                line += f" ({interval.low:.1%} to {interval.high:.1%})"
            lines.append(line)
    if evaluation.error:
        lines.append(f"failed: {evaluation.error}")
    return ", ".join(lines) + f", after {evaluation.seconds:.0f} s"
