from __future__ import annotations

import io

from tests.report.test_comparison_table import RESULT

from enginehouse.report.gate_table import print_gate
from enginehouse.results.comparison import Compared
from enginehouse.results.gate import Gate, GateFigure, GateVerdict

FIGURE = GateFigure(
    task="gsm8k [x]",
    metric="exact match",
    verdict=GateVerdict.FAIL,
    words="worse by 12.0 points, 2.0 points allowed",
    test="difference",
    margin=0.02,
    confidence=0.95,
    lower_is_better=False,
    subset=True,
    items=200,
    result=RESULT,
    p_worse=0.0246,
)
ABSENT = GateFigure(
    task="ifeval",
    metric="headline",
    verdict=GateVerdict.UNDECIDED,
    words="the run does not have this task",
    test="difference",
    margin=0.02,
    confidence=0.95,
    lower_is_better=False,
    subset=False,
    items=0,
    result=None,
)


def gate(*figures: GateFigure) -> Gate:
    """What `enginehouse gate` shows."""
    return Gate(
        run=Compared(run="20261121-040112-tuned-gsm8k-11c2", model="tuned"),
        baseline=Compared(run="20261121-034512-base-gsm8k-7f3a", model="base"),
        verdict=GateVerdict.FAIL,
        figures=figures,
        not_judged=("arc",),
        correction="Holm, 2 figures",
        warnings=("different engines: A vllm, B hf",),
    )


def printed(shown: Gate) -> str:
    """The text, without colour."""
    file = io.StringIO()
    print_gate(shown, file=file)
    return file.getvalue()


def test_every_figure_has_its_verdict_and_reason():
    """With both values, the interval and its confidence, what is allowed and what is detectable."""
    text = " ".join(printed(gate(FIGURE, ABSENT)).split())
    for part in ("54.0%", "66.0%", "+12.0", "+6.0 to +18.0", "95 %", "-2.0", "0.025", "9.1"):
        assert part in text, part
    assert "gsm8k [x] (subset)" in text
    assert "fail gsm8k [x] exact match: worse by 12.0 points, 2.0 points allowed" in text
    assert "undecided ifeval headline: the run does not have this task" in text
    assert "not in the policy: arc" in text
    assert "different engines" in text
    assert text.endswith("verdict: fail")


def test_nothing_that_could_be_compared_has_no_table():
    """Only verdicts."""
    text = printed(gate(ABSENT))
    assert "allowed" not in text
    assert "undecided" in text
