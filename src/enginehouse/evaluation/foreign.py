"""Tasks of an evaluation that another project's harness asks and scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import msgspec

from enginehouse.core.sampler import Capabilities
from enginehouse.evaluation.records import Record, TaskSpec

OnForeignProgress = Callable[[int, int | None], None]
"""How many samples of the task are done, and of how many, None while that is not known."""


class ForeignTraffic(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine has answered; what came from an earlier try's record is not in it."""

    requests: int = 0
    generated_tokens: int = 0


class ForeignTasks(Protocol):
    """Runs tasks of harnesses for one process's work on a run."""

    @property
    def capabilities(self) -> Capabilities:
        """What the engine that they ask supports."""
        ...

    @property
    def traffic(self) -> ForeignTraffic:
        """What all of its tasks have asked so far."""
        ...

    async def in_order(self, tasks: Sequence[TaskSpec]) -> Sequence[TaskSpec]:
        """The same tasks, a group before the tasks that are part of it. Raises HarnessError."""
        ...

    async def run(
        self, task: TaskSpec, *, session: int, progress: OnForeignProgress
    ) -> Iterable[Record]:
        """The records of the finished task: its parts, if it is a group, then the task itself.

        Each is a DatasetRecord, followed by the SampleRecords, with the provenance `session`, and
        ScoreRecords of all its samples. A task that was interrupted before is run again, without
        asking again what it has recorded. Cancelling it ends the harness. Raises HarnessError.
        """
        ...
