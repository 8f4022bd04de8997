"""enginehouse engines."""

from __future__ import annotations

from enginehouse.cli.console import Console
from enginehouse.cli.options import JsonOption


def engines(*, json: JsonOption = False) -> None:
    """List what each engine can do."""
    from enginehouse.commands.engines import engine_facts
    from enginehouse.report.engine_table import print_engines

    console = Console(json=json)
    facts = engine_facts(notify=console.note)
    console.result(facts, text=lambda: print_engines(facts))
