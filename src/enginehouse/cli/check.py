"""enginehouse check."""

from __future__ import annotations

import typer

from enginehouse.cli.console import Console, run_async
from enginehouse.cli.options import Given, with_config_options
from enginehouse.commands.configuration import CheckConfig
from enginehouse.core.errors import WireError
from enginehouse.runtime.context import Context


@with_config_options(CheckConfig)
def check(*, given: Given[CheckConfig], console: Console) -> None:
    """Try every feature of a server once. Exits with status 6 if one of them failed."""
    settings = given.settings()
    from enginehouse.commands.check import run_check
    from enginehouse.report.check_table import print_check

    report = run_async(run_check(settings, Context(notify=console.note)))
    console.result(report, text=lambda: print_check(report))
    if report.failed:
        raise typer.Exit(WireError.exit_code)
