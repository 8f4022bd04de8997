"""enginehouse compare."""

from __future__ import annotations

from typing import Annotated

import typer

from enginehouse.cli.console import Console
from enginehouse.cli.options import JsonOption
from enginehouse.store.layout import Layout


def compare(
    run_a: Annotated[
        str,
        typer.Argument(
            help="The baseline: a run's id, the beginning of one, or the path of its folder."
        ),
    ],
    run_b: Annotated[
        str, typer.Argument(help="The run to compare with it, given in the same way.")
    ],
    *,
    json: JsonOption = False,
) -> None:
    """Compare two runs on the items they share: B - A, and whether the difference is significant.

    Exits with status 0 whatever the verdict, 2 if the runs cannot be compared, 8 if a run does not
    exist, and 9 if too many samples failed for a score.
    """
    from enginehouse.evaluation.compare import compare_runs, require_scores
    from enginehouse.report.comparison_table import print_comparison
    from enginehouse.store.runs import open_run

    layout = Layout.from_environment()
    runs = (open_run(layout, run_a), open_run(layout, run_b))
    for run in runs:
        run.require_kind("evaluation", instead="play analyze")
    comparison = compare_runs(*runs)
    Console(json=json).result(comparison, text=lambda: print_comparison(comparison))
    require_scores(comparison)
