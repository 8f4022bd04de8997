"""The conformance suite of harnesses: what every Harness must do, as named cases.

Every harness passes it, and so does the fake. It is given a task whose items are on this machine,
and an endpoint that answers chat requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil

from enginehouse.core.errors import HarnessError
from enginehouse.harnesses.base import (
    Harness,
    HarnessEndpoint,
    HarnessProgress,
    HarnessResult,
    HarnessSettings,
)
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.runtime.context import Context
from enginehouse.tasks.base import Outcome

Case = Callable[["Subject"], Awaitable[None]]
CASES: dict[str, Case] = {}
_LIMIT = 3
_NEAR = 1e-6


class CaseFailure(msgspec.Struct, frozen=True, kw_only=True):
    """A case that failed, and how."""

    name: str
    detail: str


@dataclass
class Subject:
    """The harness under test, with everything that a run of it takes.

    `task` asks for written answers and has at least 4 items, in `include_path` if it is not one of
    the harness's own. `is_listed` is false for a task that only running it would find.
    `folder` is the case's own.
    """

    harness: Harness
    environment: EngineEnvironment
    endpoint: HarnessEndpoint
    task: str
    folder: Path
    include_path: Path | None = None
    is_listed: bool = True
    context: Context = field(default_factory=Context)
    heard: list[HarnessProgress] = field(default_factory=list)

    async def run(self, task: str | None = None, **settings: Any) -> Sequence[HarnessResult]:
        """Run a task in the case's folder; the subject's own by default."""
        return await self.harness.run(
            [task or self.task],
            endpoint=self.endpoint,
            settings=HarnessSettings(include_path=self.include_path, **settings),
            environment=self.environment,
            folder=self.folder,
            context=self.context,
            progress=self.heard.append,
        )

    async def result(self, **settings: Any) -> HarnessResult:
        """The one result of the subject's task."""
        (result,) = await self.run(**settings)
        return result


async def check_harness(
    subject: Subject, *, only: Collection[str] | None = None
) -> list[CaseFailure]:
    """Run the cases (or those named), each in a folder of its own below the subject's.

    Returns those that failed; a case never raises.
    """
    failures = []
    for name, run in CASES.items():
        if only is not None and name not in only:
            continue
        folder = subject.folder / name
        folder.mkdir(parents=True)
        one = Subject(
            **{
                **{f: getattr(subject, f) for f in subject.__dataclass_fields__},
                "folder": folder,
                "heard": [],
            }
        )
        try:
            await run(one)
        except Exception as error:  # noqa: BLE001 - whatever a harness raises is a finding
            promise = " ".join((run.__doc__ or "").split())
            detail = f"{promise} {type(error).__name__}: {error}"
            failures.append(CaseFailure(name=name, detail=detail))
    return failures


def case(run: Case) -> Case:
    """Register a case under its own name."""
    CASES[run.__name__] = run
    return run


@case
async def lists_its_tasks(subject: Subject) -> None:
    """Tasks are listed once each, the user's own among them."""
    tasks = await subject.harness.list_tasks(
        subject.environment, include_path=subject.include_path, context=subject.context
    )
    names = [task.name for task in tasks]
    assert len(names) == len(set(names)), "a name is listed twice"
    assert subject.task in names or not subject.is_listed, names[:20]


@case
async def unknown_task(subject: Subject) -> None:
    """A task that does not exist is a HarnessError of the kind unknown_task."""
    kind = "it ran"
    try:
        await subject.run(task="no_such_task_anywhere")
    except HarnessError as error:
        kind = f"{error.kind}: {error}"
    assert kind.startswith("unknown_task"), kind


@case
async def samples_are_complete(subject: Subject) -> None:
    """As many items as the limit says, each once, with what was asked and answered."""
    result = await subject.result(limit=_LIMIT)
    assert result.harness == subject.harness.name
    assert result.harness_version == subject.environment.version
    places = [(sample.position, sample.repeat) for sample in result.samples]
    assert len(places) == len(set(places)), places
    assert len({sample.item for sample in result.samples}) == _LIMIT, places
    for sample in result.samples:
        assert sample.prompt, sample
        assert sample.answer is not None or sample.failure is not None, sample
    assert result.full_size is None or result.full_size > _LIMIT, result.full_size


@case
async def headline_agrees_with_the_samples(subject: Subject) -> None:
    """The headline is one of the metrics, and the mean of the samples' outcomes or measures."""
    result = await subject.result(limit=_LIMIT)
    metric = next((m for m in result.metrics if m.label == result.headline), None)
    assert metric is not None, f"{result.headline} is not in {[m.label for m in result.metrics]}"
    outcomes = [sample.outcome for sample in result.samples]
    if all(outcome is not None for outcome in outcomes):
        mean = sum(outcome is Outcome.CORRECT for outcome in outcomes) / len(outcomes)
    else:
        measures = [s.measures[result.headline] for s in result.samples]
        mean = sum(m.value for m in measures) / sum(m.weight for m in measures)
    assert abs(mean - metric.value) < _NEAR, (mean, metric)


@case
async def tells_how_far_it_is(subject: Subject) -> None:
    """Progress does not go back, and ends with everything done."""
    await subject.run(limit=_LIMIT)
    by_task: dict[str, list[HarnessProgress]] = {}
    for state in subject.heard:
        by_task.setdefault(state.task, []).append(state)
    assert by_task, "nothing was told"
    for states in by_task.values():
        done = [state.done for state in states]
        assert done == sorted(done), done
        assert states[-1].total in (None, states[-1].done), states[-1]


@case
async def cancelled_leaves_nothing(subject: Subject) -> None:
    """Cancelled while it works, it leaves no process."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    running = asyncio.create_task(subject.run(limit=_LIMIT))
    while not subject.heard and not running.done():  # noqa: ASYNC110 - only the harness knows
        await asyncio.sleep(0.01)
    assert not running.done(), "it ended before it told how far it is"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    left = [
        child
        for child in psutil.Process().children(recursive=True)
        if child.pid not in before and child.status() != psutil.STATUS_ZOMBIE
    ]
    assert not left, left


@case
async def runs_again_after_an_interruption(subject: Subject) -> None:
    """In the folder of an interrupted run it gives the same result as in a fresh one."""
    running = asyncio.create_task(subject.run(limit=_LIMIT))
    while not subject.heard and not running.done():  # noqa: ASYNC110 - only the harness knows
        await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    again = await subject.result(limit=_LIMIT)
    subject.folder = subject.folder / "fresh"
    fresh = await subject.result(limit=_LIMIT)
    assert again.configuration_digest == fresh.configuration_digest
    assert [s.item for s in again.samples] == [s.item for s in fresh.samples]
    assert [s.prompt for s in again.samples] == [s.prompt for s in fresh.samples]
