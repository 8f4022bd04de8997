"""What scoring a run's answers again changed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import IO

import msgspec
from rich.text import Text

from enginehouse.report.summary import Figure, Report
from enginehouse.report.terminal import make_console, print_report


class TaskRescoring(msgspec.Struct, frozen=True, kw_only=True):
    """One task's answers, scored by `version` of the task instead of `version_before`.

    `changes` counts the samples that went from one outcome to another, as "wrong → correct". A
    headline is None where there is none: see the report.
    """

    task: str
    version_before: int
    version: int
    answers: int
    changes: Mapping[str, int]
    headline_before: Figure | None
    headline: Figure | None


class Rescoring(msgspec.Struct, frozen=True, kw_only=True):
    """A run after its answers were scored again; nothing was asked."""

    report: Report
    tasks: tuple[TaskRescoring, ...]


def print_rescoring(rescoring: Rescoring, *, file: IO[str] | None = None) -> None:
    """Print the report, then what changed; by default to standard output."""
    file = file or sys.stdout
    print_report(rescoring.report, file=file)
    console = make_console(file)
    for task in rescoring.tasks:
        changed = sum(task.changes.values())
        detail = ", ".join(f"{count:,} {change}" for change, count in task.changes.items())
        line = f"{task.task}: {task.answers:,} answers scored again, {changed:,} outcomes changed"
        line += f" ({detail})" if detail else ""
        line += f"; {_score(task.headline_before)} before, {_score(task.headline)} now"
        console.print(Text(line))


def _score(figure: Figure | None) -> str:
    return "no score" if figure is None else f"{figure.value:.1%}"
