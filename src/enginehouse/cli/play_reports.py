"""enginehouse play analyze, enginehouse play export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from enginehouse.cli.console import Console
from enginehouse.cli.options import JsonOption
from enginehouse.core.errors import ConfigurationError
from enginehouse.store.layout import Layout

if TYPE_CHECKING:
    from enginehouse.store.runs import Run

RunArgument = Annotated[
    str, typer.Argument(help="A run's id, the beginning of one, or the path of its folder.")
]


def analyze(
    run: RunArgument,
    *,
    csv: Annotated[bool, typer.Option("--csv", help="Print every figure as a row of CSV.")] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Also write a replay of the matches to this file."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Report an experiment, finished or not: figures with intervals, paired differences, ratings.

    See docs/experiments-report.md for what the figures mean.
    """
    from enginehouse.arena.summary import summarise_experiment
    from enginehouse.commands.play_reports import write_replay_pages
    from enginehouse.report.experiment_csv import experiment_csv
    from enginehouse.report.experiment_table import print_experiment
    from enginehouse.report.visible_text import write_text

    if json and csv:
        raise ConfigurationError("--json cannot be used with --csv", fix="give one of them")
    console = Console(json=json)
    opened = _experiment(run)
    report = summarise_experiment(opened)
    if html is not None:
        for file in write_replay_pages(opened, report, html):
            console.note(f"replay: {file}")
    if csv:
        write_text(sys.stdout, experiment_csv(report))
    else:
        console.result(report, text=lambda: print_experiment(report))


def export(run: RunArgument) -> None:
    """Print what each agent was asked and answered, with rewards, as JSON lines for a trainer.

    One line for each agent of each match that ended well, with exact token ids and
    log-probabilities if the engine reported them; docs/reference.md lists the fields.
    """
    from enginehouse.commands.play_reports import trace_lines
    from enginehouse.report.visible_text import visible_json, write_plain

    for line in trace_lines(_experiment(run)):
        write_plain(sys.stdout, visible_json(line) + "\n")


def _experiment(reference: str) -> Run:
    from enginehouse.store.runs import open_run

    run = open_run(Layout.from_environment(), reference)
    run.require_kind("experiment", instead="show")
    return run
