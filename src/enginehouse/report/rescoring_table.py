"""What scoring a run again changed."""

from __future__ import annotations

import sys
from typing import IO

from rich.text import Text

from enginehouse.report.terminal import make_console, print_report
from enginehouse.results.rescoring import Rescoring
from enginehouse.results.summary import Figure


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
