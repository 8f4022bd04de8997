"""What a watch evaluates, and what does it: its own server, or jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from enginehouse.results.curve import Kind
from enginehouse.watch.checkpoints import Finished, Look, state_of
from enginehouse.watch.journal import AttemptRecord, Status


@dataclass(frozen=True, kw_only=True)
class Pending:
    """One evaluation to do: of a folder's content, or of the base (`folder` None)."""

    folder: Finished | None
    name: str
    digest: str

    @property
    def key(self) -> str:
        """What identifies it among the watch's attempts."""
        return self.folder.name if self.folder else ""

    def record(self, status: Status) -> AttemptRecord:
        """An attempt at it, now."""
        return AttemptRecord(
            name=self.name,
            kind=self.folder.kind if self.folder else Kind.BASE,
            step=self.folder.step if self.folder else None,
            digest=self.digest,
            at=datetime.now(UTC),
            status=status,
        )

    async def changed(self) -> bool:
        """Whether the folder is not what it was when it was found."""
        if self.folder is None:
            return False
        try:
            return await asyncio.to_thread(state_of, self.folder.path) != self.folder.state
        except OSError:
            return True

    async def failed(self, error: Exception) -> AttemptRecord | None:
        """A failure, unless the folder has changed meanwhile, which explains it."""
        if await self.changed():
            return None
        return msgspec.structs.replace(self.record(Status.FAILED), failure=str(error))


class Evaluations(Protocol):
    """Evaluates what a watch finds."""

    @property
    def following(self) -> frozenset[str]:
        """The keys of what is being evaluated and has not ended."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether another one can be begun now."""
        ...

    def expect(self, look: Look) -> None:
        """Prepare for what is in the folder now."""
        ...

    async def evaluate(self, pending: Pending) -> AttemptRecord | None:
        """Evaluate it, or begin to; None if that is not possible now.

        An attempt that has begun is in the journal when this returns; one that has ended is not.
        """
        ...

    async def ended(self) -> Sequence[AttemptRecord]:
        """The attempts that were begun and have ended since the last call."""
        ...

    async def close(self) -> None:
        """Stop what was started here; jobs go on."""
        ...
