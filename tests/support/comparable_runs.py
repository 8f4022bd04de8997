"""Two runs to compare, each with answers of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from enginehouse.core.sampler import Provenance, SampleRequest
from enginehouse.evaluation import EvaluationSpec, TaskSpec, evaluate, plan_tasks
from enginehouse.store.layout import Layout
from enginehouse.store.runs import Run
from tests.support.evaluation_fakes import (
    PROVENANCE,
    AddOne,
    FakeSampler,
    dataset,
    new_run,
    question,
    solve,
)


async def ran(
    layout: Layout,
    reply: Callable[[SampleRequest], Any] = solve,
    *,
    tasks: dict[str, Any] | None = None,
    size: int = 20,
    limit: int | None = None,
    sampler: FakeSampler | None = None,
    provenance: Provenance = PROVENANCE,
    **options: Any,
) -> Run:
    """A finished run of AddOne, or of `tasks` (each with its data), answering with `reply`."""
    data = tasks or {"addone": (AddOne(), dataset(size))}
    spec = EvaluationSpec(tasks=tuple(TaskSpec(name=n, limit=limit) for n in data), **options)
    run = new_run(layout, *data)
    await evaluate(
        spec,
        tasks=plan_tasks(spec, data),
        sampler=sampler or FakeSampler(reply),
        provenance=provenance,
        run=run,
    )
    return run


def wrong_below(number: int) -> Callable[[SampleRequest], Any]:
    """Answers that are wrong for the first `number` items and right for the others."""
    return lambda request: "0" if question(request) < number else solve(request)
