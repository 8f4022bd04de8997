"""What a gate allows: how much worse a run may be than its baseline, and how sure one must be."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, field_validator

from enginehouse.core.strict_model import StrictModel
from enginehouse.results.gate import GateVerdict

Margin = Annotated[float, Field(ge=0)]
Confidence = Annotated[float, Field(ge=0.5, lt=1)]


class GateTest(StrEnum):
    """What has to be shown.

    `difference`: a figure fails if it is shown to be worse, and measured to be worse by more than
    the margin. `inferiority`: it fails if it is shown to be worse by more than the margin, and
    passes only if it is shown not to be.
    """

    DIFFERENCE = "difference"
    INFERIORITY = "inferiority"


class MetricRule(StrictModel):
    """The rule for one figure; what is not given comes from its task, then from the policy."""

    margin: Margin | None = None
    """How much worse than the baseline it may be, in the figure's own unit: 0.01 is one point."""
    confidence: Confidence | None = None
    """The confidence of the interval, with two sides."""
    test: GateTest | None = None
    """What has to be shown: difference or inferiority."""
    lower_is_better: bool | None = None
    """For a figure such as a length or an error."""


class TaskRule(MetricRule):
    """The rule for a task's headline, and those for its further metrics."""

    metrics: Mapping[str, MetricRule] = {}
    """The further metrics to judge, and what differs for them."""

    @field_validator("metrics", mode="before")
    @classmethod
    def _empty(cls, value: Any) -> Any:
        return _without_none(value)


class Policy(StrictModel):
    """How much worse a run may be than its baseline."""

    margin: Margin
    """How much worse than the baseline a figure may be, in its own unit: 0.01 is one point."""
    confidence: Confidence = 0.95
    """The confidence of the intervals, with two sides."""
    test: GateTest = GateTest.DIFFERENCE
    """What has to be shown: difference or inferiority."""
    absent: GateVerdict = GateVerdict.FAIL
    """The verdict on a task or a metric that only one of the runs has, or neither."""
    unpaired: GateVerdict = GateVerdict.FAIL
    """The verdict on a task whose samples cannot be paired, or that has no score in a run."""
    allow_undecided: bool = False
    """Exit with status 0 although figures are undecided."""
    tasks: Mapping[str, TaskRule] | None = None
    """The tasks to judge, and what differs for them; by default every task of the baseline."""

    @field_validator("tasks", mode="before")
    @classmethod
    def _empty(cls, value: Any) -> Any:
        return _without_none(value)


def _without_none(value: Any) -> Any:
    """A key of YAML with nothing behind it has nothing that differs."""
    if not isinstance(value, Mapping):
        return value
    return {key: {} if rule is None else rule for key, rule in value.items()}
