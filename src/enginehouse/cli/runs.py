"""enginehouse runs, enginehouse show."""

from __future__ import annotations

from typing import Annotated

import typer

from enginehouse.cli.console import Console
from enginehouse.cli.options import JsonOption
from enginehouse.core.errors import ConfigurationError
from enginehouse.store.layout import Layout


def runs(*, json: JsonOption = False) -> None:
    """List runs, evaluations and experiments, newest first."""
    from enginehouse.report.terminal import print_runs
    from enginehouse.store.runs import list_runs

    infos = list_runs(Layout.from_environment())
    Console(json=json).result(infos, text=lambda: print_runs(infos))


def show(
    run: Annotated[
        str, typer.Argument(help="A run's id, the beginning of one, or the path of its folder.")
    ],
    *,
    sample: Annotated[
        int | None, typer.Option("--sample", help="Show this sample; they are numbered from 1.")
    ] = None,
    at_k: Annotated[
        str | None,
        typer.Option(
            "--at-k",
            help="The k of pass@k, mean@k and best@k, as in 1,4,8; by default powers of two.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show the report of a run, finished or not, or one of an evaluation's samples in full."""
    console = Console(json=json)
    if sample is not None and at_k is not None:
        raise ConfigurationError("--sample cannot be used with --at-k")
    from enginehouse.evaluation import find_sample, summarise
    from enginehouse.report.terminal import print_report, render_sample
    from enginehouse.store.runs import open_run

    opened = open_run(Layout.from_environment(), run)
    if opened.info.kind == "experiment":
        from enginehouse.arena.summary import summarise_experiment
        from enginehouse.cli.play import show_experiment

        if sample is not None or at_k is not None:
            raise ConfigurationError(f"{run} is an experiment: it has neither samples nor pass@k")
        show_experiment(summarise_experiment(opened), console)
        return
    if sample is None:
        report = summarise(opened, at_k=None if at_k is None else _whole_numbers(at_k))
        console.result(report, text=lambda: print_report(report))
    else:
        view = find_sample(opened, sample)
        console.result(view, text=lambda: console.say(render_sample(view).rstrip()))


def _whole_numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",") if part.strip().isdecimal()]
    if len(numbers) != text.count(",") + 1 or min(numbers) < 1:
        raise ConfigurationError(
            f"--at-k {text!r} is not a list of positive whole numbers", fix="write --at-k 1,4,8"
        )
    return numbers
