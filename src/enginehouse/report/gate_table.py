"""A gate's verdicts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import IO

from rich.console import Group, RenderableType
from rich.text import Text

from enginehouse.report.comparison_table import detectable_cell, p_cell, paired_cells
from enginehouse.report.fitting_table import FittingTable
from enginehouse.report.terminal import make_console
from enginehouse.results.gate import Gate, GateFigure, GateVerdict

_STYLES = {
    GateVerdict.PASS: "bold green",
    GateVerdict.FAIL: "bold red",
    GateVerdict.UNDECIDED: "bold yellow",
}
_COLUMNS = (
    "task",
    "metric",
    "baseline",
    "run",
    "difference",
    "interval",
    "allowed",
    "p",
    "detectable",
)


def print_gate(gate: Gate, *, file: IO[str] | None = None) -> None:
    """Print a gate's verdicts, by default to standard output."""
    make_console(file or sys.stdout).print(render_gate(gate))


def render_gate(gate: Gate) -> RenderableType:
    """The runs, every figure, the verdicts and their reasons, warnings."""
    parts: list[RenderableType] = [
        Text.assemble((label, "bold"), f"  {run.run}  {run.model}")
        for label, run in (("baseline", gate.baseline), ("run     ", gate.run))
    ]
    if rows := [_row(figure) for figure in gate.figures if figure.result is not None]:
        parts += [Text(), FittingTable(_COLUMNS, rows)]
    parts.append(Text())
    parts += [
        Text.assemble(
            (f"{figure.verdict.value:<10}", _STYLES[figure.verdict]),
            f"{figure.task} {figure.metric}: {figure.words}",
        )
        for figure in gate.figures
    ]
    parts += [Text(), *(Text(line, style="dim") for line in _legend(gate))]
    if gate.warnings:
        warnings = (f"warning: {w} (A: baseline, B: run)" for w in gate.warnings)
        parts += [Text(), *(Text(line, style="yellow") for line in warnings)]
    verdict = Text.assemble("verdict: ", (gate.verdict.value, _STYLES[gate.verdict]))
    return Group(*parts, Text(), verdict)


def _row(figure: GateFigure) -> list[str]:
    result = figure.result
    assert result is not None
    first, second, difference, interval = paired_cells(result)
    share = first.endswith("%")
    margin = f"{100 * figure.margin:.1f}" if share else f"{figure.margin:.3g}"
    return [
        figure.task + (" (subset)" if figure.subset else ""),
        figure.metric,
        first,
        second,
        difference,
        f"{interval} ({100 * figure.confidence:g} %)" if result.interval else interval,
        ("+" if figure.lower_is_better else "-") + margin,
        p_cell(figure.p_worse),
        detectable_cell(result),
    ]


def _legend(gate: Gate) -> Iterator[str]:
    yield (
        "Differences (run - baseline) of percentages are in points. detectable: the smallest "
        "difference that one test finds with 80 % power, given how much the pairs differ here."
    )
    if gate.correction:
        yield f"p is given after {gate.correction}; intervals are not corrected."
    if gate.not_judged:
        yield f"not in the policy: {', '.join(gate.not_judged)}"
