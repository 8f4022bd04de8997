"""enginehouse tasks."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from enginehouse.cli.console import Console
from enginehouse.cli.options import JsonOption

if TYPE_CHECKING:
    from enginehouse.tasks.base import TaskInfo


def tasks(*, json: JsonOption = False) -> None:
    """List the tasks: size, licence, what "correct" means, and what they need."""
    from enginehouse.tasks.registry import list_tasks

    console = Console(json=json)
    infos = list_tasks(notify=console.note)
    console.result(infos, text=lambda: print_tasks(infos))


def print_tasks(infos: Iterable[TaskInfo]) -> None:
    """Print a paragraph per task."""
    from rich.padding import Padding
    from rich.text import Text

    from enginehouse.report.terminal import make_console

    console = make_console(sys.stdout)
    for info in infos:
        size = "" if info.size is None else f"  {info.size:,} items"
        console.print(Text(info.name, style="bold") + Text(f"{size}, {info.licence}"))
        lines = [info.description, f"correct: {info.headline}"]
        lines += [f"needs:   {info.needs}"] if info.needs else []
        for line in lines:
            console.print(Padding(Text(line), (0, 0, 0, 2)))
