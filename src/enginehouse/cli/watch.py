"""enginehouse watch."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING

from enginehouse.cli.console import Console, run_async
from enginehouse.cli.evaluate import DataOption, task_values
from enginehouse.cli.options import Given, with_config_options
from enginehouse.runtime.context import Context
from enginehouse.watch.configuration import WatchConfig

if TYPE_CHECKING:
    from enginehouse.results.curve import Curve, CurvePoint


@with_config_options(WatchConfig, without={"adapter", "judge"})
def watch(*, data: DataOption = None, given: Given[WatchConfig], console: Console) -> None:
    """Evaluate checkpoints and adapters as they appear in a folder, and plot their scores.

    The model is the base of the adapters; it is evaluated, too.
    """
    settings = given.parse(task_values(given, data=data))
    from enginehouse.report.curve_table import LinePerPoint, curve_display
    from enginehouse.watch import watcher

    shown = (
        nullcontext(LinePerPoint(sys.stderr, sys.stderr))
        if console.json
        else curve_display(sys.stdout, sys.stderr)
    )
    latest: Curve | None = None
    try:
        with shown as display:

            def show(curve: Curve, point: CurvePoint | None) -> None:
                nonlocal latest
                latest = curve
                if not console.json:
                    display.curve(curve, point)

            run_async(
                watcher.watch(
                    settings,
                    Context(notify=(lambda _: None) if console.quiet else display.note),
                    progress=(lambda _: None) if console.quiet else display.progress,
                    shown=show,
                )
            )
    finally:  # Ctrl-C is the usual end of a watch that waits for more
        if console.json and latest is not None:
            console.result(latest, text=lambda: None)
