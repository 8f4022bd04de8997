"""enginehouse watch."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from enginehouse.cli.console import Console, run_async
from enginehouse.cli.evaluate import values_given
from enginehouse.cli.options import (
    ConfigOption,
    JsonOption,
    QuietOption,
    VerboseOption,
    with_config_options,
)
from enginehouse.deployment.configuration import parse
from enginehouse.runtime.context import Context
from enginehouse.watch.configuration import WatchConfig

if TYPE_CHECKING:
    from enginehouse.results.curve import Curve, CurvePoint


@with_config_options(WatchConfig)
def watch(
    *,
    data: Annotated[
        str | None, typer.Option(help="Data for the only task: a file, or hf:owner/name:file.")
    ] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    given: dict[str, Any],
) -> None:
    """Evaluate checkpoints and adapters as they appear in a folder, and keep their curve."""
    console = Console(json=json, verbose=verbose, quiet=quiet)
    values = values_given(given, config=config, data=data)
    settings = parse(WatchConfig, values, origin=str(config or "the command line"))
    from enginehouse.report.curve_table import LinePerPoint, curve_display
    from enginehouse.watch import watcher as watching

    display = (
        LinePerPoint(sys.stderr, sys.stderr) if json else curve_display(sys.stdout, sys.stderr)
    )
    latest: list[Curve] = []

    def shown(curve: Curve, point: CurvePoint | None) -> None:
        latest[:] = [curve]
        if not json:
            display.curve(curve, point)

    try:
        with display:
            run_async(
                watching.watch(
                    settings,
                    Context(notify=(lambda _: None) if quiet else display.note),
                    progress=(lambda _: None) if quiet else display.progress,
                    shown=shown,
                )
            )
    finally:  # whoever waits for more ends it with Ctrl-C
        if json and latest:
            console.data(latest[0])
