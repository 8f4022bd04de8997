"""enginehouse compare."""

from __future__ import annotations

from typing import Annotated

import typer

from enginehouse.cli.console import Console
from enginehouse.cli.options import JsonOption
from enginehouse.store.layout import Layout


def compare(
    run_a: Annotated[
        str, typer.Argument(help="The baseline: a run's id, the beginning of one, or its folder.")
    ],
    run_b: Annotated[str, typer.Argument(help="The run that is compared with it, likewise.")],
    *,
    json: JsonOption = False,
) -> None:
    """Compare two runs on the items that both were asked: B - A, and whether it means anything.

    The exit code is 0 whatever the verdict, 2 for runs that cannot be compared, 8 for a run that
    is not there, 9 if too many samples failed for a score.
    """
    layout = Layout.from_environment()
    from enginehouse.evaluation.compare import compare_runs, require_scores
    from enginehouse.report.comparison_table import print_comparison
    from enginehouse.store.runs import open_run

    comparison = compare_runs(open_run(layout, run_a), open_run(layout, run_b))

    Console(json=json).result(comparison, text=lambda: print_comparison(comparison))

    require_scores(comparison)
