"""Curves as a watch makes them, from made answers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from enginehouse.results.curve import Against, Curve, CurvePoint, Kind, TaskInCurve, TaskPoint
from enginehouse.results.summary import Figure
from enginehouse.statistics.intervals import wilson
from enginehouse.statistics.paired import compare_paired
from enginehouse.watch.checkpoints import step_of

AT = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
ITEMS = 50
Answers = np.ndarray[tuple[int], np.dtype[np.float64]]


def made_curve(
    names: Sequence[str],
    *,
    tasks: Sequence[str] = ("sums",),
    failed: Sequence[str] = (),
    base: bool = True,
    why: str = "it holds NaN",
) -> Curve:
    """Points that get better, but for those that failed."""
    rng = np.random.default_rng(3)
    at_base = {task: _answers(rng, 0.4) for task in tasks}
    best: dict[str, tuple[str, Answers]] = {}
    points = []
    for number, name in enumerate(names):
        found = []
        for task in tasks if name not in failed else ():
            answers = _answers(rng, min(0.95, 0.4 + 0.07 * number))
            against = _against("org/tiny", at_base[task], answers) if base else None
            best_so_far = _against(*best[task], answers) if task in best else None
            found.append(
                TaskPoint(
                    task=task,
                    score=_figure(answers),
                    from_base=against,
                    from_best=best_so_far,
                )
            )
            if task not in best or answers.mean() > best[task][1].mean():
                best[task] = (name, answers)
        points.append(_point(name, Kind.CHECKPOINT, found, why if name in failed else None))
    base_tasks = [TaskPoint(task=t, score=_figure(a)) for t, a in at_base.items()]
    asked = tasks if base or best else ()
    return Curve(
        directory="/data/out",
        model="org/tiny" if base else None,
        seed=0,
        base=_point("org/tiny", Kind.BASE, base_tasks, None) if base else None,
        points=tuple(points),
        tasks=tuple(
            TaskInCurve(
                task=task,
                headline_name="correct",
                items=ITEMS,
                samples_per_item=1,
                best=best[task][0] if task in best else None,
            )
            for task in asked
        ),
    )


def _answers(rng: np.random.Generator, share: float) -> Answers:
    return (rng.random(ITEMS) < share).astype(float)


def _figure(answers: Answers) -> Figure:
    return Figure(value=float(answers.mean()), interval=wilson(answers.sum(), ITEMS))


def _against(name: str, one: Answers, other: Answers) -> Against:
    values = np.stack([one, other])[:, :, None]
    return Against(name=name, result=compare_paired(values, np.ones_like(values)))


def _point(name: str, kind: Kind, tasks: Sequence[TaskPoint], failure: str | None) -> CurvePoint:
    return CurvePoint(
        name=name,
        kind=kind,
        step=None if kind is Kind.BASE else step_of(name),
        digest="0" * 64,
        at=AT,
        run=None if failure else f"20261121-{name}",
        failure=failure,
        tasks=tuple(tasks),
    )
