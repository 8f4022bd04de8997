"""Tasks of an evaluation that another project's harness asks and scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from enginehouse.core.sampler import Capabilities
from enginehouse.evaluation.records import Record, TaskSpec

OnForeignProgress = Callable[[int, int | None], None]
"""How many samples of the task are done, and of how many, None while that is not known."""


class ForeignTasks(Protocol):
    """Runs tasks of harnesses for one process's work on a run."""

    @property
    def capabilities(self) -> Capabilities:
        """What the engine that they ask supports."""
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
