"""A comparison of two runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import IO

from rich.console import Group, RenderableType
from rich.text import Text

from enginehouse.report.fitting_table import FittingTable
from enginehouse.report.terminal import make_console
from enginehouse.results.comparison import Comparison, TaskComparison, Verdict
from enginehouse.statistics.paired import PairedResult

_STYLES = {
    Verdict.B_BETTER: "bold green",
    Verdict.A_BETTER: "bold red",
    Verdict.NOT_SHOWN: "bold",
    Verdict.TOO_FEW: "bold yellow",
    Verdict.NO_SCORE: "bold red",
}
_CORRECTED = "p (Holm)"
_COLUMNS = ("task", "metric", "A", "B", "B - A", "95 % interval", "p", _CORRECTED, "detectable")


def print_comparison(comparison: Comparison, *, file: IO[str] | None = None) -> None:
    """Print a comparison, by default to standard output."""
    make_console(file or sys.stdout).print(render_comparison(comparison))


def render_comparison(comparison: Comparison) -> RenderableType:
    """The runs, every task's figures, the verdicts and what they are based on, warnings."""
    runs = (("A", comparison.a), ("B", comparison.b))
    parts: list[RenderableType] = [
        Text.assemble((label, "bold"), f"  {run.run}  {run.model}") for label, run in runs
    ]
    if any(task.headline for task in comparison.tasks):
        several = comparison.correction is not None
        columns = [c for c in _COLUMNS if several or c != _CORRECTED]
        rows = list(_rows(comparison, several=several))
        parts += [Text(), FittingTable(columns, rows)]
    for task in comparison.tasks:
        verdict = (task.words, _STYLES[task.verdict])
        parts += [Text(), Text.assemble((f"{task.task}: ", "bold"), verdict)]
        parts += [Text(f"  {line}") for line in _basis(task)]
    parts += [Text(), *(Text(line, style="dim") for line in _legend(comparison))]
    if comparison.warnings:
        parts += [Text(), *(Text(f"warning: {w}", style="yellow") for w in comparison.warnings)]
    return Group(*parts)


def _rows(comparison: Comparison, *, several: bool) -> Iterator[list[str]]:
    for task in comparison.tasks:
        if task.headline is None:
            continue
        name = task.task + (" (subset)" if task.subset else "")
        corrected = [p_cell(task.p_corrected)] if several else []
        yield [name, task.headline_name, *_cells(task.headline, corrected)]
        blank = ["-"] if several else []
        for further in task.metrics:
            yield ["", further.metric, *_cells(further.result, blank)]


def paired_cells(result: PairedResult) -> list[str]:
    """Both values, their difference and its interval; shares in per cent and points."""
    interval, show = result.interval, _number(result)
    unit = "%" if _is_share(result) else ""
    return [
        *(show(value, "") + unit for value in (result.first, result.second)),
        show(result.difference, "+"),
        "none" if interval is None else f"{show(interval.low, '+')} to {show(interval.high, '+')}",
    ]


def detectable_cell(result: PairedResult) -> str:
    """The smallest difference that would have been found."""
    return "none" if result.detectable is None else _number(result)(result.detectable, "")


def p_cell(value: float | None) -> str:
    """A p-value."""
    if value is None:
        return "none"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _cells(result: PairedResult, corrected: list[str]) -> list[str]:
    least = detectable_cell(result)
    return [*paired_cells(result), p_cell(result.p_value), *corrected, least]


def _is_share(result: PairedResult) -> bool:
    return max(abs(result.first), abs(result.second)) <= 1


def _number(result: PairedResult) -> Callable[[float, str], str]:
    """What writes a value of the figure, with or without its sign."""
    scale, style = (100, ".1f") if _is_share(result) else (1, ".3g")
    return lambda value, sign: f"{scale * value:{sign}{style}}"


def _basis(task: TaskComparison) -> Iterator[str]:
    """What the verdict is based on: pairs, test, and how every outcome was counted."""
    if (result := task.headline) is not None:
        each = f", {task.samples_per_item} samples each" if task.samples_per_item > 1 else ""
        alone = f"; correct only in A {result.only_first:,}, only in B {result.only_second:,}"
        yield f"{result.pairs:,} pairs ({task.items:,} items{each}){alone}; {result.method}"
    yield (
        f"failed: A {task.failed.a:,}, B {task.failed.b:,}; "
        f"unscored: A {task.unscored.a:,}, B {task.unscored.b:,} "
        f"({task.left_out:,} pairs are left out because of them)"
    )
    yield (
        f"truncated: A {task.truncated.a:,}, B {task.truncated.b:,}; "
        f"unparsable: A {task.unparsable.a:,}, B {task.unparsable.b:,} "
        "(both count as incorrect)"
    )


def _legend(comparison: Comparison) -> Iterator[str]:
    yield (
        "Differences of percentages are in points. detectable: the smallest difference that one "
        "test (two-sided, level 0.05) finds with 80 % power, given how much the pairs differ here."
    )
    if comparison.correction:
        yield f"Verdicts use p after {comparison.correction}; intervals are not corrected."
    if any(task.metrics for task in comparison.tasks):
        yield "Verdicts are about each task's first metric; p of other metrics is not corrected."
