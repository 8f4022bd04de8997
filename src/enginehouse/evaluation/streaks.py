"""Failures in a row that may have one cause: the server is gone, or the API key is refused."""

from __future__ import annotations

from collections.abc import Mapping

from enginehouse.core.errors import (
    ConnectionFailedError,
    ForbiddenError,
    NoCreditError,
    ServerGoneError,
    TlsError,
    UnauthorizedError,
    WireError,
)
from enginehouse.evaluation.asking import Asker, Unit
from enginehouse.evaluation.ledger import MISSING, Ledger
from enginehouse.evaluation.records import SampleRecord

GONE_AFTER = 10  # connection failures in a row, beyond those that were in flight together
_UNCONNECTED = {ConnectionFailedError.__name__, TlsError.__name__}
# How many refusals of the key in a row end a run without any answer yet. A 403 may also be a hosted
# filter's verdict on one prompt, and it arrives sooner than the answers to other prompts.
_REFUSED_AFTER: Mapping[str, tuple[type[WireError], int]] = {
    UnauthorizedError.__name__: (UnauthorizedError, 10),
    NoCreditError.__name__: (NoCreditError, 10),
    ForbiddenError.__name__: (ForbiddenError, 50),
}


class Streaks:
    """Holds failures back until it is clear whether they have one cause or each its own.

    Without a common cause they are failed samples like any other. With one the run ends, and they
    are not recorded, so that a resumed run asks them again. `limit` failures in a row are too many
    in any case.
    """

    def __init__(self, ledger: Ledger, *, limit: int) -> None:
        self._ledger = ledger
        self._limit = limit
        self._unconnected: list[SampleRecord] = []  # since the last reply of any kind
        self._refused: list[SampleRecord] = []  # since the last answer
        self._any_answer = False
        self._replied: Unit | None = None  # the last one to which the server replied

    def add(self, sample: SampleRecord, unit: Unit) -> list[SampleRecord]:
        """The records to write now. Raises ServerGoneError, or the error of a refused key."""
        failure = sample.failure
        if _is_unconnected(sample):
            self._unconnected.append(sample)
            if len(self._unconnected) >= self._limit:
                raise self._gone()
            return []
        ready: list[SampleRecord] = []
        if failure is None or failure.status is not None:
            self._replied = unit
            ready, self._unconnected = self._unconnected, ready
        if failure is not None and _is_refused(sample):
            self._refused.append(sample)
            _, first = _REFUSED_AFTER[failure.error]
            if len(self._refused) >= (self._limit if self._any_answer else first):
                raise self._refusal()
            return ready
        ready.append(sample)
        if failure is None:
            self._any_answer = True
            ready += self._refused
            self._refused = []
        return ready

    async def end(self, asker: Asker, proven: Unit | None) -> list[SampleRecord]:
        """The records still held back, once a sample that worked before works again.

        `proven` is one that was answered. Raises as `add` does.
        """
        if self._unconnected and (
            len(self._unconnected) >= GONE_AFTER
            or self._replied is None
            or _is_unconnected(await asker.ask(self._replied))
        ):
            raise self._gone()
        if self._refused and (proven is None or _is_refused(await asker.ask(proven))):
            raise self._refusal()
        return [*self._unconnected, *self._refused]

    def _gone(self) -> ServerGoneError:
        last = self._unconnected[-1].failure
        return ServerGoneError(
            f"the server is gone: {len(self._unconnected)} requests in a row could not connect",
            why=last.message if last else None,
            fix="look at the server's log, start it again, and resume: "
            f"{self._missing()} samples are missing, and none was counted as failed because of "
            "this",
        )

    def _refusal(self) -> WireError:
        failure = self._refused[-1].failure
        assert failure is not None
        kind, _ = _REFUSED_AFTER[failure.error]
        return kind(
            f"{len(self._refused)} requests in a row were refused because of the API key",
            why=failure.message,
            fix="use a key that is allowed to do this, and resume: "
            f"{self._missing()} samples are missing, and none was counted as failed because of "
            "this",
            status=failure.status,
        )

    def _missing(self) -> int:
        return sum(task.counts[MISSING] for task in self._ledger.tasks.values())


def _is_unconnected(sample: SampleRecord) -> bool:
    return sample.failure is not None and sample.failure.error in _UNCONNECTED


def _is_refused(sample: SampleRecord) -> bool:
    return sample.failure is not None and sample.failure.error in _REFUSED_AFTER
