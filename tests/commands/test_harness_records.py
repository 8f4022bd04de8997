"""What a harness reported, as records."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from enginehouse.commands.harness_records import Traffic, records_of
from enginehouse.core.errors import HarnessError
from enginehouse.evaluation.records import DatasetRecord, SampleRecord, ScoreRecord, TaskSpec
from enginehouse.harnesses.base import HarnessMetric, HarnessResult, HarnessSample
from enginehouse.results.summary import HarnessFigure
from enginehouse.tasks.base import Measure, Outcome

ASKED = TaskSpec(name="fake:sums", harness="fake")
TRAFFIC = Traffic(requests=3, replayed=1, seconds=2.0)


def result(*samples: HarnessSample, task: str = "sums", **more: Any) -> HarnessResult:
    """A result with these samples."""
    return HarnessResult(
        task=task,
        harness="fake",
        harness_version="1.0",
        task_version="2",
        configuration_digest="d" * 64,
        headline="exact",
        metrics=(HarnessMetric(name="exact", value=0.5),),
        samples=samples,
        **more,
    )


def sample(position: int, repeat: int = 0, **more: Any) -> HarnessSample:
    """A sample in that place."""
    return HarnessSample(item=f"i{position}", position=position, repeat=repeat, **more)


def records(*results: HarnessResult) -> list[Any]:
    """The records of a task that was asked for."""
    return records_of(results, asked=ASKED, session=0, traffic=TRAFFIC)


def test_positions_have_no_gaps_and_every_place_is_filled():
    """What the harness left out has failed."""
    made = records(
        result(
            sample(7, 1, outcome=Outcome.WRONG),
            sample(7, 0, outcome=Outcome.CORRECT),
            sample(3, 0, failure="too long"),
        )
    )
    dataset, *others = made
    assert isinstance(dataset, DatasetRecord)
    assert (dataset.items, dataset.samples, dataset.version) == (2, 2, "2")
    places = {(r.position, r.repeat): r for r in others if isinstance(r, SampleRecord)}
    assert sorted(places) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert places[0, 0].failure is not None
    assert places[0, 1].failure is not None
    assert places[0, 1].failure.message == "the harness recorded nothing for it"
    scores = [r for r in others if isinstance(r, ScoreRecord)]
    assert [(s.position, s.repeat, s.outcome) for s in scores] == [
        (1, 0, Outcome.CORRECT),
        (1, 1, Outcome.WRONG),
    ]


def test_what_is_no_number_is_left_out():
    """A journal could not be read with it."""
    nan = float("nan")
    metrics = (
        HarnessMetric(name="exact", value=0.5, standard_error=nan),
        HarnessMetric(name="other", value=nan),
    )
    made = records(
        msgspec.structs.replace(
            result(sample(0, outcome=Outcome.CORRECT, measures={"other": Measure(nan)})),
            metrics=metrics,
        )
    )
    assert made[0].harness.figures == (HarnessFigure(name="exact", value=0.5),)
    assert made[2].measures == {}


def test_two_samples_in_one_place_are_an_error():
    """Neither is lost silently."""
    with pytest.raises(HarnessError, match="same place"):
        records(result(sample(1), sample(1)))


def test_a_name_for_several_tasks_is_a_group_without_figures():
    """As lm-eval's tags."""
    made = records(result(sample(0), task="a"), result(sample(0), task="b"))
    datasets = [record for record in made if isinstance(record, DatasetRecord)]
    assert [record.task for record in datasets] == ["fake:a", "fake:b", "fake:sums"]
    assert datasets[-1].harness is not None
    assert datasets[-1].harness.parts == ("fake:a", "fake:b")
    assert (datasets[-1].items, datasets[-1].harness.requests) == (0, 3)
    with pytest.raises(HarnessError, match="no result"):
        records()
