"""A gate's verdicts, as plain data (every struct here is JSON)."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from enginehouse.results.comparison import Compared
from enginehouse.statistics.paired import PairedResult


class GateVerdict(StrEnum):
    """Whether a figure is allowed; `undecided`: there are too few items to tell."""

    PASS = "pass"
    FAIL = "fail"
    UNDECIDED = "undecided"


class GateFigure(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of the run beside the baseline's, on the same items.

    `metric` is "headline", or the name of a further one.
    In `result` the first is the baseline, the second the run; it is None where the two cannot be
    compared, for the reason in `words`. `test`, `margin` and `confidence` are those of the policy.
    `p_worse` is the two-sided p-value of what would make it fail, after Holm's correction over all
    figures. `items_needed` estimates, for an undecided figure, how many items of the same kind
    would decide it.
    """

    task: str
    metric: str
    verdict: GateVerdict
    words: str
    test: str
    margin: float
    confidence: float
    lower_is_better: bool
    subset: bool
    items: int
    result: PairedResult | None
    p_worse: float | None = None
    items_needed: int | None = None


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """A run judged by a policy.

    `verdict` is `fail` if any figure fails, otherwise `undecided` if any is. `not_judged` are the
    baseline's tasks that the policy does not name. `warnings` name what besides the model differs.
    """

    run: Compared
    baseline: Compared
    verdict: GateVerdict
    figures: tuple[GateFigure, ...]
    not_judged: tuple[str, ...]
    correction: str | None
    warnings: tuple[str, ...]
