"""enginehouse runs, enginehouse show."""

from __future__ import annotations

from typing import Annotated

import typer

from enginehouse.cli.console import Console
from enginehouse.cli.options import JsonOption
from enginehouse.core.errors import ConfigurationError
from enginehouse.store.layout import Layout


def runs(*, json: JsonOption = False) -> None:
    """List evaluation runs, the latest first."""
    from enginehouse.report.terminal import print_runs
    from enginehouse.store.runs import list_runs

    found = list_runs(Layout.from_environment())

    Console(json=json).result(found, text=lambda: print_runs(found))


def show(
    run: Annotated[str, typer.Argument(help="A run's id, the beginning of one, or its folder.")],
    *,
    sample: Annotated[
        int | None, typer.Option("--sample", help="One sample by its number, from 1.")
    ] = None,
    at_k: Annotated[
        str | None,
        typer.Option(
            "--at-k", help="pass@k, mean@k and best@k for these k, as 1,4,8 (else powers of two)."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show a run's report, finished or not, or one of its samples in full."""
    console = Console(json=json)
    if sample is not None and at_k is not None:
        raise ConfigurationError("--sample shows one sample, --at-k is about all: give one of them")
    from enginehouse.evaluation import find_sample, summarise
    from enginehouse.report.terminal import print_report, render_sample
    from enginehouse.store.runs import open_run

    found = open_run(Layout.from_environment(), run)

    if sample is None:
        report = summarise(found, at_k=None if at_k is None else _whole_numbers(at_k))
        console.result(report, text=lambda: print_report(report))
    else:
        view = find_sample(found, sample)
        console.result(view, text=lambda: console.say(render_sample(view).rstrip()))


def _whole_numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",") if part.strip().isdecimal()]
    if len(numbers) != text.count(",") + 1 or min(numbers) < 1:
        raise ConfigurationError(
            f"--at-k {text!r} is no list of whole numbers from 1", fix="write --at-k 1,4,8"
        )
    return numbers
