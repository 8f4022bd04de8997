"""What `enginehouse check` found."""

from __future__ import annotations

import sys
from collections import Counter
from typing import IO

from rich.text import Text

from enginehouse.report.terminal import make_console
from enginehouse.results.check import CheckReport, Outcome

_STYLES = {Outcome.PASSED: "green", Outcome.FAILED: "red", Outcome.NOT_SUPPORTED: "dim"}


def print_check(report: CheckReport, *, file: IO[str] | None = None) -> None:
    """Print a line per feature, with the next step below it, and the count of each outcome."""
    console = make_console(file or sys.stdout)
    engine = f"{report.engine or 'unknown engine'} {report.engine_version or ''}".strip()
    console.print(Text(f"{report.model} on {engine} at {report.url}", style="bold"))
    marks, names = (
        max(len(text) for text in texts)
        for texts in (Outcome, [line.name for line in report.lines])
    )
    for line in report.lines:
        text = Text(f"{line.outcome:<{marks}}", style=_STYLES[line.outcome])
        console.print(text + Text(f"  {line.name:<{names}}  {line.says}"), soft_wrap=True)
        if line.fix:
            console.print(Text(f"{'':<{marks}}  {'':<{names}}  next: {line.fix}"), soft_wrap=True)
    counts = Counter(line.outcome for line in report.lines)
    console.print(Text(", ".join(f"{outcome}: {counts[outcome]}" for outcome in Outcome)))
