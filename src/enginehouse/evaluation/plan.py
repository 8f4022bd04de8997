"""Which samples a run has: selected items, repeats and seeds."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from enginehouse.core.errors import DataError, UnknownNameError
from enginehouse.evaluation.records import DatasetRecord, EvaluationSpec, TaskSpec
from enginehouse.tasks.base import Choose, Dataset, Item, Task

TaskData = Mapping[str, tuple[Task, Dataset]]


@dataclass(frozen=True)
class TaskPlan:
    """One task's share of an evaluation. `order[position]` is an index into the items.

    `settings` are complete, from the evaluation where the task has none of its own; its max_tokens
    None is the task's own number.
    """

    name: str
    task: Task
    dataset: Dataset
    order: Sequence[int]
    record: DatasetRecord
    settings: TaskSpec

    def item(self, position: int) -> Item:
        """The item at a position of the evaluated order."""
        return self.dataset.items[self.order[position]]


TaskPlans = tuple[TaskPlan, ...]


def plan_tasks(spec: EvaluationSpec, tasks: TaskData) -> TaskPlans:
    """The plan of every native task, in the spec's order. Raises UnknownNameError and DataError."""
    return tuple(_plan(spec, task, tasks) for task in spec.native)


def _plan(spec: EvaluationSpec, chosen: TaskSpec, tasks: TaskData) -> TaskPlan:
    if chosen.name not in tasks:
        raise UnknownNameError("loaded task", chosen.name, tasks)
    task, dataset = tasks[chosen.name]
    if not dataset.items:
        raise DataError(
            f"task {chosen.name} has no items", why=f"{dataset.source} is empty", fix="check --data"
        )
    order = select(dataset.items, limit=chosen.limit, seed=spec.seed, task=chosen.name)
    once = isinstance(task.ask(dataset.items[order[0]]), Choose)
    info, settings = task.info, spec.settings_of(chosen.name)
    record = DatasetRecord(
        task=chosen.name,
        version=info.version,
        headline=info.headline,
        source=dataset.source,
        licence=dataset.licence,
        digest=dataset.digest,
        items=len(order),
        samples=1 if once else settings.samples or 1,
        full_size=dataset.full_size,
        subset=dataset.is_subset or len(order) < len(dataset.items),
    )
    return TaskPlan(chosen.name, task, dataset, order, record, settings)


def select(items: Sequence[Item], *, limit: int | None, seed: int, task: str) -> Sequence[int]:
    """Indices of the items to evaluate, in the order of asking.

    Without a limit below the number of items: all, in the data set's order. Otherwise the `limit`
    items with the smallest SHA-256 of (seed, task, item id), in that order: a random choice that
    does not depend on the file's order and is the same for every model; a smaller limit takes its
    beginning.
    """
    if limit is None or limit >= len(items):
        return range(len(items))
    return heapq.nsmallest(limit, range(len(items)), key=lambda i: _hash(seed, task, items[i].id))


def sample_seed(run_seed: int, task: str, item: str, repeat: int) -> int:
    """A sample's seed in [0, 2**31): the same for every model, so that runs are paired.

    The first 31 bits of the SHA-256 of the JSON array [run_seed, task, item, repeat].
    """
    return int.from_bytes(_hash(run_seed, task, item, repeat)[:4], "big") >> 1


def _hash(*parts: object) -> bytes:
    return hashlib.sha256(msgspec.json.encode(parts)).digest()
