"""enginehouse tasks."""

from __future__ import annotations

from enginehouse.cli.console import Console
from enginehouse.cli.options import JsonOption


def tasks(*, json: JsonOption = False) -> None:
    """List the tasks: size, licence, what "correct" means, what they need."""
    from enginehouse.report.terminal import print_tasks
    from enginehouse.tasks.registry import list_tasks

    console = Console(json=json)
    infos = list_tasks(notify=console.note)
    console.result(infos, text=lambda: print_tasks(infos))
