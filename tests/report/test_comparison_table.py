from __future__ import annotations

import io

import msgspec
import pytest
from rich.console import Console

from enginehouse.report.comparison_table import print_comparison, render_comparison
from enginehouse.results.comparison import (
    Compared,
    Comparison,
    MetricComparison,
    OutcomeCounts,
    TaskComparison,
    Verdict,
)
from enginehouse.statistics.intervals import Interval
from enginehouse.statistics.paired import PairedResult

RESULT = PairedResult(
    pairs=198,
    first=0.54,
    second=0.66,
    difference=0.12,
    interval=Interval(low=0.06, high=0.18, confidence=0.95, method="Bonett-Price"),
    p_value=0.0123,
    method="exact McNemar",
    detectable=0.0912,
    only_first=8,
    only_second=32,
)
TASK = TaskComparison(
    task="gsm8k",
    version=1,
    headline_name="exact match",
    items=200,
    samples_per_item=1,
    subset=True,
    left_out=2,
    failed=OutcomeCounts(a=1, b=2),
    unscored=OutcomeCounts(a=7, b=8),
    truncated=OutcomeCounts(a=3, b=4),
    unparsable=OutcomeCounts(a=5, b=6),
    headline=RESULT,
    p_corrected=0.0246,
    verdict=Verdict.B_BETTER,
    words="B is better",
    metrics=(
        MetricComparison(
            metric="tokens [mean]",
            result=msgspec.structs.replace(
                RESULT, first=210.0, second=190.5, difference=-19.5, interval=None, p_value=None
            ),
        ),
    ),
)
COMPARISON = Comparison(
    a=Compared(run="20261121-034512-base-gsm8k-7f3a", model="base"),
    b=Compared(run="20261121-040112-tuned-gsm8k-11c2", model="tuned"),
    tasks=(
        TASK,
        msgspec.structs.replace(
            TASK,
            task="ifeval",
            subset=False,
            headline=None,
            p_corrected=None,
            verdict=Verdict.NO_SCORE,
            words="A has no score: all 9 samples failed",
            metrics=(),
        ),
    ),
    correction="Holm, 2 tasks",
    warnings=("different temperature: A 0.0, B 1.0 (gsm8k)",),
)


def text(comparison: Comparison, width: int = 100) -> str:
    """The comparison as plain text."""
    stream = io.StringIO()
    Console(file=stream, width=width, markup=False).print(render_comparison(comparison))
    return stream.getvalue()


def test_comparison_says_everything():
    """Both runs, scores, difference in points, interval, p-values, effect, counts, warnings."""
    shown = text(COMPARISON)
    for part in (
        "A  20261121-034512-base-gsm8k-7f3a  base",
        "B  20261121-040112-tuned-gsm8k-11c2  tuned",
        "gsm8k (subset)",
        "54.0%",
        "66.0%",
        "+12.0",
        "+6.0 to +18.0",
        "0.012",
        "0.025",
        "9.1",
        "gsm8k: B is better",
        "198 pairs (200 items)",
        "A 8, only in B 32",
        "exact McNemar",
        "failed: A 1, B 2",
        "unscored: A 7, B 8",
        "2 pairs are left out",
        "truncated: A 3, B 4",
        "unparsable: A 5, B 6",
        "all 9 samples failed",
        "Holm, 2 tasks",
        "warning: different temperature: A 0.0, B 1.0 (gsm8k)",
    ):
        assert part in shown, part


def test_metrics_that_are_no_shares_are_shown_as_they_are():
    """No percentages above 1, and nothing is made up where there is no interval."""
    (row,) = (line for line in text(COMPARISON).splitlines() if "tokens [mean]" in line)
    assert row.split()[2:] == ["210", "190", "-19.5", "none", "none", "-", "0.0912"]


def test_one_task_is_not_corrected():
    """No column and no word of Holm."""
    alone = msgspec.structs.replace(COMPARISON, tasks=(TASK,), correction=None, warnings=())
    shown = text(alone)
    assert "Holm" not in shown
    assert "warning" not in shown


def test_tiny_p_values_are_not_zero():
    """A p-value is never rounded to nothing."""
    sure = msgspec.structs.replace(TASK, headline=msgspec.structs.replace(RESULT, p_value=1e-9))
    assert "< 0.001" in text(msgspec.structs.replace(COMPARISON, tasks=(sure,)))


@pytest.mark.parametrize("width", [30, 40, 60, 80, 200])
def test_narrow_terminals_lose_nothing(width):
    """Lines fit the width; values are folded or stacked, never cut."""
    shown = text(COMPARISON, width)
    assert all(len(line) <= width for line in shown.splitlines())
    assert "…" not in shown
    for part in ("54.0%", "66.0%", "+12.0", "+6.0 to +18.0", "0.012", "0.025", "9.1"):
        assert part in shown


def test_no_score_at_all():
    """Without a figure there is no table, and the reason is still there."""
    none = msgspec.structs.replace(COMPARISON, tasks=COMPARISON.tasks[1:], correction=None)
    shown = text(none)
    assert "95 % interval" not in shown
    assert "A has no score" in shown


def test_no_escape_codes_without_a_terminal():
    """A pipe gets plain text; names with brackets are no markup."""
    stream = io.StringIO()
    print_comparison(COMPARISON, file=stream)
    assert "\x1b" not in stream.getvalue()
    assert "tokens [mean]" in stream.getvalue()
