"""The curve of a watch: order of points, differences, the best. Blocking."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from enginehouse.core.errors import EnginehouseError
from enginehouse.evaluation.compare import compare_runs
from enginehouse.results.comparison import TaskComparison
from enginehouse.results.curve import Against, Curve, CurvePoint, Kind, TaskInCurve, TaskPoint
from enginehouse.results.summary import Report
from enginehouse.store.layout import Layout
from enginehouse.store.runs import open_run
from enginehouse.watch.journal import AttemptRecord, TaskScore

_Compared = Mapping[str, TaskComparison] | str  # by task, or why the runs cannot be compared


class CurveMaker:
    """Makes the curve for each new point; any two runs are compared once."""

    def __init__(self, directory: Path, *, model: str | None, seed: int, layout: Layout) -> None:
        self._directory = directory
        self._model = model
        self._seed = seed
        self._layout = layout
        self._compared: dict[tuple[str, str], _Compared] = {}

    def curve(self, attempts: Iterable[AttemptRecord]) -> Curve:
        """The curve of attempts that have ended."""
        done = list(attempts)
        base = next((attempt for attempt in done if attempt.kind is Kind.BASE), None)
        ordered = _by_step([attempt for attempt in done if attempt.kind is not Kind.BASE])
        best: dict[str, AttemptRecord] = {}
        points = []
        for attempt in ordered:
            points.append(self._point(attempt, base, best))
            for score in attempt.scores:
                if score.score and score.score.value > _value(best.get(score.task), score.task):
                    best[score.task] = attempt
        return Curve(
            directory=str(self._directory),
            model=self._model,
            seed=self._seed,
            base=self._point(base, None, {}) if base else None,
            points=tuple(points),
            tasks=_tasks([base, *ordered] if base else ordered, best),
        )

    def _point(
        self, attempt: AttemptRecord, base: AttemptRecord | None, best: Mapping[str, AttemptRecord]
    ) -> CurvePoint:
        return CurvePoint(
            name=attempt.name,
            kind=attempt.kind,
            step=attempt.step,
            digest=attempt.digest,
            at=attempt.at,
            run=attempt.run,
            failure=attempt.failure,
            tasks=tuple(
                TaskPoint(
                    task=score.task,
                    score=score.score,
                    no_score=score.no_score,
                    from_base=self._against(base, attempt, score.task),
                    from_best=self._against(best.get(score.task), attempt, score.task),
                )
                for score in attempt.scores
            ),
        )

    def _against(
        self, other: AttemptRecord | None, attempt: AttemptRecord, task: str
    ) -> Against | None:
        if other is None or other.run is None or attempt.run is None:
            return None
        if other.run == attempt.run:
            return Against(name=other.name, result=None, why="it has the same content")
        pair = (other.run, attempt.run)
        if pair not in self._compared:
            self._compared[pair] = self._compare(*pair)
        compared = self._compared[pair]
        if isinstance(compared, str):
            return Against(name=other.name, result=None, why=compared)
        if task not in compared:
            return Against(name=other.name, result=None, why="it was not evaluated on this task")
        comparison = compared[task]
        why = None if comparison.headline else comparison.words
        return Against(name=other.name, result=comparison.headline, why=why)

    def _compare(self, one: str, other: str) -> _Compared:
        try:
            runs = (open_run(self._layout, one), open_run(self._layout, other))
            return {comparison.task: comparison for comparison in compare_runs(*runs).tasks}
        except EnginehouseError as error:
            return error.message + (f" ({error.why})" if error.why else "")


def _by_step(attempts: Sequence[AttemptRecord]) -> list[AttemptRecord]:
    """By step; one without a step follows the largest step that appeared before it."""
    places: list[tuple[int, int]] = []
    largest = -1
    for number, attempt in enumerate(attempts):
        if attempt.step is not None:
            largest = max(largest, attempt.step)
        places.append((largest if attempt.step is None else attempt.step, number))
    order = sorted(range(len(attempts)), key=lambda number: places[number])
    return [attempts[number] for number in order]


def _value(attempt: AttemptRecord | None, task: str) -> float:
    for score in attempt.scores if attempt else ():
        if score.task == task and score.score:
            return score.score.value
    return float("-inf")


def _tasks(
    attempts: Iterable[AttemptRecord], best: Mapping[str, AttemptRecord]
) -> tuple[TaskInCurve, ...]:
    scores: dict[str, TaskScore] = {s.task: s for attempt in attempts for s in attempt.scores}
    return tuple(
        TaskInCurve(
            task=name,
            headline_name=score.headline_name,
            items=score.items,
            samples_per_item=score.samples_per_item,
            best=best[name].name if name in best else None,
        )
        for name, score in scores.items()
    )


def scores_of(report: Report) -> tuple[TaskScore, ...]:
    """The part of a run's report that the journal keeps."""
    return tuple(
        TaskScore(
            task=task.task,
            headline_name=task.headline_name,
            items=task.items,
            samples_per_item=task.samples_per_item,
            score=task.headline,
            no_score=task.no_headline,
        )
        for task in report.tasks
    )
