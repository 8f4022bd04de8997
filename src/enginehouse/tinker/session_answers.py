"""The answers of sampling sessions, for clients that poll all samples of a session at once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

from enginehouse.tinker.future import SAMPLE, Future
from enginehouse.tinker.polls import Polls

CLIENT_SEQ_IDS: Final = 1_000_000_000
"""The SDK's seq_ids of one client of a sampling session: its number times this, and so on."""

_Key = tuple[str, str, int]  # user, sampling session, client


@dataclass(frozen=True, kw_only=True)
class Completions:
    """Answered futures of a sampling session; `cursor` asks for the later ones."""

    futures: list[Future]
    cursor: int


@dataclass(kw_only=True)
class _Client:
    """The answered futures of one client of a session, by the order of their answers."""

    answered: dict[int, Future] = field(default_factory=dict)
    more: asyncio.Event = field(default_factory=asyncio.Event)
    polls: int = 0


class SessionAnswers:
    """Which samples of which session are answered, and not yet known to be by their client."""

    def __init__(self, polls: Polls) -> None:
        self._polls = polls
        self._clients: dict[_Key, _Client] = {}

    def add(self, future: Future) -> None:
        """A future was answered; ignored unless it is a sample of a session."""
        key = _client_of(future)
        if key is not None:
            client = self._clients.setdefault(key, _Client())
            client.answered[future.order] = future
            client.more.set()

    def remove(self, future: Future) -> None:
        """It is no longer known. Idempotent."""
        key = _client_of(future)
        if key is not None and key in self._clients:
            self._clients[key].answered.pop(future.order, None)
            self._drop_if_idle(key)

    async def after(
        self, cursor: int, *, user: str, sampling_session_id: str, client: int, seconds: float
    ) -> Completions:
        """What was answered after `cursor`, as soon as there is something, or after `seconds`.

        What the cursor covers is not told again.
        """
        key = (user, sampling_session_id, client)
        told = self._clients.setdefault(key, _Client())
        for order in [order for order in told.answered if order <= cursor]:
            del told.answered[order]
        if not told.answered:
            told.more.clear()
            told.polls += 1
            try:
                await self._polls.wait(told.more, seconds=seconds)
            finally:
                told.polls -= 1
                self._drop_if_idle(key)
        return Completions(
            futures=list(told.answered.values()), cursor=max(told.answered, default=cursor)
        )

    def _drop_if_idle(self, key: _Key) -> None:
        client = self._clients.get(key)
        if client is not None and not client.answered and not client.polls:
            del self._clients[key]


def _client_of(future: Future) -> _Key | None:
    session, seq_id = future.details.get("sampling_session_id"), future.details.get("seq_id")
    if future.kind != SAMPLE or session is None or seq_id is None:
        return None
    return (future.user, session, seq_id // CLIENT_SEQ_IDS)
