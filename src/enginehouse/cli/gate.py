"""enginehouse gate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from enginehouse.cli.console import Console
from enginehouse.cli.options import JsonOption
from enginehouse.store.layout import Layout


def gate(
    run: Annotated[
        str,
        typer.Argument(
            help="The run to judge: its id, the beginning of one, or the path of its folder."
        ),
    ],
    *,
    baseline: Annotated[
        str, typer.Option("--baseline", help="The run to compare it with, given in the same way.")
    ],
    policy: Annotated[
        Path, typer.Option("--policy", help="A YAML file that says how much worse is allowed.")
    ],
    json: JsonOption = False,
) -> None:
    """Judge a run against a baseline by a policy, item by item, for use in CI.

    Exits with status 0 if every figure passes, 11 if one is worse than allowed, and 12 if there are
    too few items to tell; 2 for a wrong policy, 8 if a run does not exist.
    """
    from enginehouse.commands.gate import judge_run
    from enginehouse.evaluation.gate import require_pass
    from enginehouse.report.gate_table import print_gate

    judgement = judge_run(run, baseline=baseline, policy=policy, layout=Layout.from_environment())
    Console(json=json).result(judgement.gate, text=lambda: print_gate(judgement.gate))
    require_pass(judgement.gate, judgement.policy)
