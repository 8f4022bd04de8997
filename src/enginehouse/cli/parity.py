"""enginehouse parity."""

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
from enginehouse.commands.configuration import ParityConfig
from enginehouse.core.errors import ModelError
from enginehouse.deployment.configuration import merged, parse, read_yaml
from enginehouse.runtime.context import Context


@with_config_options(ParityConfig)
def parity(
    *,
    config: ConfigOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    given: dict[str, Any],
) -> None:
    """Compare the engine's log-probabilities with transformers'; status 4 if they disagree."""
    console = Console(json=json, verbose=verbose, quiet=quiet)
    values = merged(read_yaml(config) if config else {}, given)
    settings = parse(ParityConfig, values, origin=str(config or "the command line"))
    from enginehouse.commands.parity import run_parity
    from enginehouse.report.parity_table import print_parity

    report = run_async(run_parity(settings, Context(notify=console.note)))

    console.result(report, text=lambda: print_parity(report))
    if not report.agrees:
        raise typer.Exit(ModelError.exit_code)
