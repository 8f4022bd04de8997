"""enginehouse run-with."""

from __future__ import annotations

from typing import Annotated

import typer

from enginehouse.cli.console import Console, run_async
from enginehouse.cli.options import Given, with_config_options
from enginehouse.commands.configuration import RunWithConfig
from enginehouse.runtime.context import Context


@with_config_options(RunWithConfig, json=False)
def run_with(
    *,
    program: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- COMMAND", help="The program and its arguments."),
    ] = None,
    given: Given[RunWithConfig],
    console: Console,
) -> None:
    """Start a server, run a program that finds it by its usual variables, stop the server.

    MODEL may also be the URL of a running server or the name that `enginehouse ps` shows; that one
    is not stopped. The exit status is the program's, or 128 + N if signal N ended it.
    """
    config = given.settings()
    from enginehouse.commands.run_with import run_with as run
    from enginehouse.runtime.interrupts import SignalRoute

    signals = SignalRoute()
    work = run(config, Context(notify=console.note), argv=program or (), signals=signals)
    raise typer.Exit(run_async(work, signals=signals))
