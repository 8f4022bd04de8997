"""What a harness reported, as records of a run's journal."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from enginehouse.core.errors import HarnessError
from enginehouse.evaluation.records import (
    DatasetRecord,
    Failure,
    Record,
    SampleRecord,
    ScoreRecord,
    TaskSpec,
)
from enginehouse.harnesses.base import HarnessResult, HarnessSample
from enginehouse.harnesses.names import harness_task_name
from enginehouse.results.summary import HarnessExchange, HarnessFigure, HarnessWork
from enginehouse.tasks.base import Outcome

_NOTHING = "the harness recorded nothing for it"


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """What a harness asked: `requests` were answered by the engine, `replayed` from the record.

    The tokens are those that the engine stated.
    """

    requests: int
    replayed: int
    seconds: float
    prompt_tokens: int = 0
    generated_tokens: int = 0


def records_of(
    results: Sequence[HarnessResult], *, asked: TaskSpec, session: int, traffic: Traffic
) -> list[Record]:
    """The records of the task that was `asked` for, those of a group's parts before its own.

    Parts of which nothing was reported, and figures that are not finite, are left out. Positions
    are numbered again, without gaps. A sample that a harness asked some repeats of and not others
    has failed in those that it left out. Raises HarnessError if nothing was reported, or samples
    are in the same place.
    """
    own = _own_result(results, asked)
    reported = {result.task for result in results}
    parts = tuple(part for part in own.subtasks if part in reported)
    own = msgspec.structs.replace(own, subtasks=parts)
    records: list[Record] = []
    for result in results:
        if result.task != own.task:
            known = tuple(part for part in result.subtasks if part in reported)
            records += _task_records(
                msgspec.structs.replace(result, subtasks=known),
                name=f"{asked.harness}:{result.task}",
                asked=asked,
                session=session,
            )
    records += _task_records(own, name=asked.name, asked=asked, session=session, traffic=traffic)
    return records


def _own_result(results: Sequence[HarnessResult], asked: TaskSpec) -> HarnessResult:
    name = harness_task_name(asked.name)
    assert name is not None
    if len(results) == 1:
        return results[0]
    for result in results:
        if result.task == name.task:
            return result
    if not results:
        raise HarnessError(f"{name.harness} reported no result for {name.task}")
    return _tag(name.task, results)


def _tag(name: str, results: Sequence[HarnessResult]) -> HarnessResult:
    """What stands for several tasks under one name, of which nothing is reported itself."""
    digests = [result.configuration_digest for result in results]
    return HarnessResult(
        task=name,
        harness=results[0].harness,
        harness_version=results[0].harness_version,
        task_version="",
        configuration_digest=hashlib.sha256("\n".join(digests).encode()).hexdigest(),
        headline="",
        metrics=(),
        samples=(),
        subtasks=tuple(result.task for result in results),
    )


def _task_records(
    result: HarnessResult,
    *,
    name: str,
    asked: TaskSpec,
    session: int,
    traffic: Traffic | None = None,
) -> Iterator[Record]:
    places = _places(result.samples, task=name)
    items = len({position for position, _ in places})
    repeats = 1 + max((repeat for _, repeat in places), default=0)
    size = result.full_size
    prefix = f"{asked.harness}:"
    yield DatasetRecord(
        task=name,
        version=result.task_version,
        headline=result.headline,
        source=result.source,
        licence=result.licence,
        digest=result.configuration_digest,
        items=items,
        samples=repeats,
        full_size=size,
        subset=asked.limit is not None if size is None or not items else items < size,
        harness=HarnessWork(
            name=result.harness,
            version=result.harness_version,
            figures=tuple(
                HarnessFigure(
                    name=metric.label,
                    value=metric.value,
                    standard_error=_finite(metric.standard_error),
                    higher_is_better=metric.higher_is_better,
                )
                for metric in result.metrics
                if math.isfinite(metric.value)
            ),
            parts=tuple(prefix + part for part in result.subtasks),
            part_of=None if name == asked.name else asked.name,
            truncated=sum(sample.truncated for sample in result.samples),
            shortened=sum(sample.shortened for sample in result.samples),
            **(msgspec.structs.asdict(traffic) if traffic else {}),
        ),
    )
    for (position, repeat), sample in places.items():
        yield from _sample_records(
            sample, task=name, position=position, repeat=repeat, session=session
        )
    names = {position: sample.item for (position, _), sample in places.items()}
    for position, item in names.items():
        for repeat in range(repeats):
            if (position, repeat) not in places:
                yield SampleRecord(
                    task=name,
                    item=item,
                    position=position,
                    repeat=repeat,
                    provenance=session,
                    requests=(),
                    failure=_failure(_NOTHING),
                )


def _places(samples: Iterable[HarnessSample], *, task: str) -> dict[tuple[int, int], HarnessSample]:
    """The samples by position, counted from 0 without gaps, and repeat."""
    ordered = sorted(samples, key=lambda sample: (sample.position, sample.repeat))
    numbers: dict[int, int] = {}
    places: dict[tuple[int, int], HarnessSample] = {}
    for sample in ordered:
        place = (numbers.setdefault(sample.position, len(numbers)), sample.repeat)
        if place in places:
            raise HarnessError(
                f"the harness reported two samples of {task} in the same place",
                why=f"items {places[place].item} and {sample.item}, repeat {sample.repeat}",
            )
        places[place] = sample
    return places


def _sample_records(
    sample: HarnessSample, *, task: str, position: int, repeat: int, session: int
) -> Iterator[Record]:
    """The answer and its score; of a failed sample only why it failed."""
    failed = sample.failure is not None and sample.outcome is None
    yield SampleRecord(
        task=task,
        item=sample.item,
        position=position,
        repeat=repeat,
        provenance=session,
        requests=(),
        exchange=HarnessExchange(prompt=sample.prompt, answer=sample.answer, target=sample.target),
        failure=_failure(sample.failure or "") if failed else None,
    )
    if failed:
        return
    outcome = sample.outcome or Outcome.MEASURED
    reason = sample.failure
    if outcome is Outcome.UNSCORED and reason is None:
        reason = "the harness did not score it"
    yield ScoreRecord(
        task=task,
        item=sample.item,
        position=position,
        repeat=repeat,
        outcome=outcome,
        measures={
            name: measure
            for name, measure in sample.measures.items()
            if math.isfinite(measure.value) and math.isfinite(measure.weight)
        },
        failure=None if reason is None else _failure(reason),
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _failure(message: str) -> Failure:
    return Failure(error=HarnessError.__name__, stage=HarnessError.stage, message=message)
