"""enginehouse check."""

from __future__ import annotations

from typing import Any

import typer

from enginehouse.cli.console import Console, run_async
from enginehouse.cli.options import (
    ConfigOption,
    JsonOption,
    QuietOption,
    VerboseOption,
    with_config_options,
)
from enginehouse.commands.configuration import CheckConfig
from enginehouse.core.errors import WireError
from enginehouse.deployment.configuration import merged, parse, read_yaml
from enginehouse.runtime.context import Context


@with_config_options(CheckConfig)
def check(
    *,
    config: ConfigOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    given: dict[str, Any],
) -> None:
    """Try everything that a server should do, once; status 6 if a line failed."""
    console = Console(json=json, verbose=verbose, quiet=quiet)
    values = merged(read_yaml(config) if config else {}, given)
    settings = parse(CheckConfig, values, origin=str(config or "the command line"))
    from enginehouse.commands.check import run_check
    from enginehouse.report.check_table import print_check

    report = run_async(run_check(settings, Context(notify=console.note)))

    console.result(report, text=lambda: print_check(report))
    if report.failed:
        raise typer.Exit(WireError.exit_code)
