"""A watched folder's curve, as plain data (every struct here is JSON)."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import msgspec

from enginehouse.results.summary import Figure
from enginehouse.statistics.paired import PairedResult


class Kind(StrEnum):
    """What was evaluated: the model itself, a LoRA adapter on it, or full weights."""

    BASE = "base"
    ADAPTER = "adapter"
    CHECKPOINT = "checkpoint"


class Against(msgspec.Struct, frozen=True, kw_only=True):
    """A point beside another (`name`) on the same items; in `result` the other comes first.

    `result` is None for the reason in `why`. Nothing is corrected for the number of points.
    """

    name: str
    result: PairedResult | None
    why: str | None = None


class TaskPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One task at one point. `score` is None for the reason in `no_score`.

    `from_base` is None for the base itself and where there is none, `from_best` where no earlier
    point has a score; the base does not count as one.
    """

    task: str
    score: Figure | None
    no_score: str | None = None
    from_base: Against | None = None
    from_best: Against | None = None


class CurvePoint(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint, an adapter or the base, and its results.

    `step` is the last number in the folder's name, None without one. `failure` says why it could
    not be evaluated; then there are no `tasks`. `run` is the evaluation's id.
    """

    name: str
    kind: Kind
    step: int | None
    digest: str
    at: datetime
    run: str | None
    failure: str | None
    tasks: tuple[TaskPoint, ...] = ()

    def of(self, task: str) -> TaskPoint | None:
        """The point's result for a task; None if it failed."""
        return next((point for point in self.tasks if point.task == task), None)


class TaskInCurve(msgspec.Struct, frozen=True, kw_only=True):
    """A task of the curve: how many items were asked how often, and the points with the best score.

    `best` names the earliest of them, None before the first.
    """

    task: str
    headline_name: str
    items: int
    samples_per_item: int
    best: str | None


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """Everything known about a folder. `points` by step, without the base.

    Points without a number in their name are placed where they appeared.
    """

    directory: str
    model: str | None
    seed: int
    base: CurvePoint | None
    points: tuple[CurvePoint, ...]
    tasks: tuple[TaskInCurve, ...]
