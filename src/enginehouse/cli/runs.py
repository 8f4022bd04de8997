"""enginehouse runs, enginehouse show."""

from __future__ import annotations

from typing import Annotated

import typer

from enginehouse.cli.console import Console
from enginehouse.cli.options import JsonOption
from enginehouse.evaluation import find_sample, summarise
from enginehouse.report.terminal import print_report, print_runs, render_sample
from enginehouse.store.layout import Layout
from enginehouse.store.runs import list_runs, open_run


def runs(*, json: JsonOption = False) -> None:
    """List evaluation runs, the latest first."""
    found = list_runs(Layout.from_environment())
    Console(json=json).result(found, text=lambda: print_runs(found))


def show(
    run: Annotated[str, typer.Argument(help="A run's id, the beginning of one, or its folder.")],
    *,
    sample: Annotated[
        int | None, typer.Option("--sample", help="One sample by its number, from 1.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show a run's report, finished or not, or one of its samples in full."""
    console = Console(json=json)
    found = open_run(Layout.from_environment(), run)
    if sample is None:
        report = summarise(found)
        console.result(report, text=lambda: print_report(report))
    else:
        view = find_sample(found, sample)
        console.result(view, text=lambda: console.say(render_sample(view).rstrip()))
