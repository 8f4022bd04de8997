"""One future: a request that was accepted, and its answer once there is one."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from enginehouse.core.errors import StoreError
from enginehouse.tinker.future_journal import Accepted, Answered, FutureJournal
from enginehouse.tinker.wire.schema import same_content

JSON: Final = "application/json"
SAMPLE: Final = "sample"
"""The kind of a request for samples: the only one without effects, so that it can be cancelled."""

State = Literal["waiting", "finished", "failed", "cancelled"]
QueueState = Literal["active", "paused_capacity", "paused_rate_limit"]


class Future:
    """A request that was accepted, and its answer once there is one.

    `details` are small facts that the owner gave with it. `content_type` and `size` (bytes) are
    those of the answer, `order` counts the answers of the service. `accepted_at` and `answered_at`
    are Unix times. `queue_state` and `reason` say why it waits. Only `Futures` changes a future,
    but for `take`.
    """

    def __init__(self, accepted: Accepted, journal: FutureJournal) -> None:
        self.request_id = accepted.request_id
        self.key = accepted.key
        self.kind = accepted.kind
        self.user = accepted.user
        self.details: Mapping[str, Any] = accepted.details
        self.replayed = accepted.replayed
        self.accepted_at = accepted.at
        self.answered_at: float | None = None
        self.state: State = "waiting"
        self.content_type = ""
        self.size = 0
        self.order = 0
        self.queue_state: QueueState = "active"
        self.reason: str | None = None
        self.body_kept = True
        self.answering = False
        self.answered = asyncio.Event()
        self.expires = float("inf")
        self._journal = journal
        self._accepted = accepted
        self._payload: bytes | None = None
        self._taken = False

    @property
    def body_size(self) -> int:
        """The bytes of the request, as it was received."""
        return self._accepted.size

    @property
    def body(self) -> bytes:
        """The request as it was received. Reads a large one from its file, which blocks.

        Raises StoreError if it is no longer kept, as after the answer of a sample.
        """
        if self._accepted.body is not None:
            return self._accepted.body
        if not self.body_kept:
            raise StoreError(f"the body of {self.request_id} is no longer kept")
        return _read(self._journal.body_path(self.request_id), self._accepted.size)

    @property
    def payload(self) -> bytes:
        """The answer; for a failed or cancelled one, JSON with `error` and `category`.

        Reads a large one from its file, which blocks; see `payload_in_memory`. Raises StoreError if
        that is damaged.
        """
        if self._payload is not None:
            return self._payload
        return _read(self._journal.answer_path(self.request_id), self.size)

    @property
    def may_be_replayed(self) -> bool:
        """Whether it may have to be done again, in its place among its model's other jobs."""
        return self.replayed and self.body_kept

    @property
    def needs_body(self) -> bool:
        """Whether its body is kept after the answer; a forward pass has nothing to repeat."""
        return self.replayed and not self.details.get("forward_only", False)

    @property
    def payload_in_memory(self) -> bool:
        """Whether `payload` does not block."""
        return self._payload is not None

    def take(self) -> bool:
        """True for its first caller, who has to see that it is answered; False for all others.

        Also False if it is answered already. `Futures.accept` returns the same future for a
        request that is sent twice.
        """
        first = self.state == "waiting" and not self._taken
        self._taken = True
        return first

    def is_request(self, body: bytes) -> bool:
        """Whether this is the same request, though it may have been serialised differently."""
        if hashlib.sha256(body).hexdigest() == self._accepted.digest:
            return True
        try:
            return same_content(self.body, body, content_type=self._accepted.content_type)
        except StoreError:
            return False

    def answer(self, answered: Answered) -> None:
        """Take over an answer that is in the journal, and wake who waits for it."""
        self.state = answered.outcome
        self.answered_at = answered.at
        self.content_type = answered.content_type
        self.size = answered.size
        self.order = answered.order
        self._payload = answered.payload
        self.reason = None
        if not self.replayed:
            self.forget_body()
        elif not self.needs_body:
            self._drop_body()
        self.answered.set()

    def forget_body(self) -> None:
        """Keep no body in memory; the caller sees to the file."""
        self.body_kept = False
        self._drop_body()

    def _drop_body(self) -> None:
        self._accepted = msgspec.structs.replace(self._accepted, body=None)


def failure(message: str, category: Literal["user", "server"]) -> bytes:
    """The JSON by which the SDK learns that a request failed, and whose mistake it was."""
    return msgspec.json.encode({"error": message, "category": category})


def _read(path: Path, size: int) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StoreError(f"cannot read {path}", why=error.strerror or str(error)) from error
    if len(content) != size:
        raise StoreError(f"{path} is damaged", why=f"it has {len(content)} bytes instead of {size}")
    return content
