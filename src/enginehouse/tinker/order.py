"""The jobs of one model, in the order of their seq_ids."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.data import LossRequest, LossResult
from enginehouse.tinker.future import Future


@dataclass(eq=False, kw_only=True)
class Job:
    """One request that a model's order contains.

    `repeated` is one that was answered before the trainer lost the model: it has its effect again,
    and nobody is told. `arrived` is when it was put in line. `request` is the body of a
    forward_backward once it has been decoded, or `error` why it cannot be computed. It is computed
    in `parts`; the first ones gave `results`.
    """

    future: Future
    seq_id: int
    repeated: bool = False
    arrived: float = 0.0
    request: LossRequest | None = None
    error: TinkerError | None = None
    parts: tuple[LossRequest, ...] = ()
    results: list[LossResult] = field(default_factory=list)

    @property
    def part(self) -> LossRequest | None:
        """The part that is to be computed next; None if there is none."""
        done = len(self.results)
        return self.parts[done] if self.error is None and done < len(self.parts) else None

    @property
    def kind(self) -> str:
        """Such as "forward_backward"."""
        return self.future.kind


class Line:
    """The jobs of a model that have arrived and are not done, whatever order they arrive in.

    `next` is the seq_id of the one that may be computed now.
    """

    def __init__(self, *, first: int = 0) -> None:
        self.next = first
        self._jobs: dict[int, Job] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter([self._jobs[seq_id] for seq_id in sorted(self._jobs)])

    def add(self, job: Job) -> None:
        """Put a job in its place. Its seq_id is `next` or higher."""
        self._jobs[job.seq_id] = job

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for one of them."""
        return any(not job.repeated for job in self._jobs.values())

    def first(self) -> Job | None:
        """The job with the lowest seq_id, whether or not all before it have arrived."""
        return self._jobs[min(self._jobs)] if self._jobs else None

    def ready(self, after: int = 0) -> Job | None:
        """The next job, or the one `after` places behind it; None while it has not arrived."""
        return self._jobs.get(self.next + after)

    def skip(self) -> None:
        """Go on to the first job that is there: those before it will not arrive."""
        self.next = min(self._jobs, default=self.next)

    def finish(self, job: Job) -> None:
        """Go on to the job after this one, which was the next."""
        del self._jobs[job.seq_id]
        self.next = job.seq_id + 1

    def restart(self, repeated: list[Job], *, first: int) -> None:
        """Begin again at `first`, with jobs that were done before, and then those that wait."""
        self.next = first
        for job in repeated:
            self._jobs[job.seq_id] = job
