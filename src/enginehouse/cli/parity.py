"""enginehouse parity."""

from __future__ import annotations

import typer

from enginehouse.cli.console import Console, run_async
from enginehouse.cli.options import Given, with_config_options
from enginehouse.commands.configuration import ParityConfig
from enginehouse.core.errors import ModelError
from enginehouse.runtime.context import Context


@with_config_options(ParityConfig)
def parity(*, given: Given[ParityConfig], console: Console) -> None:
    """Compare the engine's log-probabilities with those of transformers.

    Exits with status 4 if they disagree.
    """
    settings = given.settings()
    from enginehouse.commands.parity import run_parity
    from enginehouse.report.parity_table import print_parity

    report = run_async(run_parity(settings, Context(notify=console.note)))
    console.result(report, text=lambda: print_parity(report))
    if not report.agrees:
        raise typer.Exit(ModelError.exit_code)
