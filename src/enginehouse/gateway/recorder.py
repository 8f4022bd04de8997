"""Records what a gateway answers, and answers from the record what was asked before."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from enginehouse.core.errors import StoreError
from enginehouse.core.sampler import Capability
from enginehouse.deployment.base import Deployment
from enginehouse.dialects.server_sent_events import EventParser
from enginehouse.gateway.canonical import CanonicalRequest, read_request
from enginehouse.gateway.identity import Identification, Identity, identification_of
from enginehouse.gateway.journal import AnswerJournal, AnswerRecord, open_journal
from enginehouse.runtime.context import Context, Notify

_END = b"[DONE]"
_ABORTED = ("abort", "error")


class RecordedReply(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer with status 200, as it goes to the client; of a stream, all of its events."""

    body: bytes
    content_type: str
    streamed: bool = False


class RecordedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request whose answer will be recorded, and that answer if it is known already."""

    request: CanonicalRequest
    identity: Identity
    adapter: str | None
    key: bytes
    reply: RecordedReply | None = None


class RecorderFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What a recorder has done since it was opened.

    `unrecorded` counts the answers that could not be written; they were given nevertheless.
    """

    recorded: int
    replayed: int
    unrecorded: int


@asynccontextmanager
async def open_recorder(
    folder: Path,
    *,
    deployment: Deployment,
    context: Context,
    replay: bool = False,
    resume: bool = False,
) -> AsyncIterator[Recorder]:
    """Record into `folder`, for the length of the block.

    `replay`: a request whose answer is the same each time is answered from the journal. `resume`:
    the program that asks is the one that was recorded, started again. Its k-th identical request
    gets the k-th answer that was recorded before, whatever its temperature. Raises StoreError.
    """
    with ExitStack() as stack:
        opening = open_journal(folder)
        journal = await asyncio.to_thread(stack.enter_context, opening)
        if journal.repair is not None:
            context.notify(f"{journal.path}: {journal.repair}")
        async with identification_of(deployment, context) as identification:
            yield Recorder(
                journal,
                identification,
                seeds=Capability.SEED in deployment.sampler.capabilities.supports,
                replay=replay,
                resume=resume,
                notify=context.notify,
            )


class Recorder:
    """One gateway's journal. `seeds`: the engine supports seeds."""

    def __init__(
        self,
        journal: AnswerJournal,
        identification: Identification,
        *,
        seeds: bool,
        replay: bool,
        resume: bool,
        notify: Notify,
    ) -> None:
        self._journal = journal
        self._identification = identification
        self._seeds = seeds
        self._replay = replay
        self._resume = resume
        self._notify = notify
        self._failing = False
        self._recorded = self._replayed = self._unrecorded = 0

    @property
    def figures(self) -> RecorderFigures:
        """What was done so far."""
        return RecorderFigures(
            recorded=self._recorded, replayed=self._replayed, unrecorded=self._unrecorded
        )

    async def find(
        self, path: str, body: bytes, *, adapter_digest: str | None = None
    ) -> RecordedRequest | None:
        """The request, with its answer if it is replayed.

        None for a request that is not recorded: not a sampling or embedding request, not JSON, or
        sent while it is not certain who answers it.
        """
        request = read_request(path, body)
        if request is None:
            return None
        identity = await self._identification.now()
        if identity is None:
            return None
        key = _key_of(request, identity=identity, adapter_digest=adapter_digest)
        return RecordedRequest(
            request=request,
            identity=identity,
            adapter=adapter_digest,
            key=key,
            reply=self._recorded_reply(key, request),
        )

    async def record(
        self, asked: RecordedRequest, reply: RecordedReply, *, weights_digest: str | None
    ) -> None:
        """Record the answer to a request that `find` returned without one.

        `weights_digest` is that of the reply (client.exchange.Reply). An answer that is not whole,
        or that the engine aborted, is left out. If it cannot be written, the user is told once,
        until writing succeeds again. Blocking, for the time of one write to the page cache.
        """
        if not is_whole(reply):
            return
        identity = await self._identification.after(asked.identity, weights_digest=weights_digest)
        if identity is None:
            return
        request = asked.request
        key = _key_of(request, identity=identity, adapter_digest=asked.adapter)
        record = AnswerRecord(
            key=key.hex(),
            identity=identity.digest,
            adapter=asked.adapter,
            path=request.path,
            request=request.text,
            content_type=reply.content_type,
            streamed=reply.streamed,
            reply=reply.body.decode(),
            at=datetime.now(UTC),
        )
        try:
            offset = self._journal.append(record, identity=identity)
        except StoreError as error:
            self._unrecorded += 1
            if not self._failing:
                self._notify(f"answers are returned but not recorded: {error}")
            self._failing = True
            return
        if self._failing:
            self._notify(f"answers are recorded again; {self._unrecorded:,} were not")
        self._failing = False
        self._recorded += 1
        if self._replay and self._is_repeatable(request):
            self._journal.index.add(key, offset)

    def _recorded_reply(self, key: bytes, request: CanonicalRequest) -> RecordedReply | None:
        offset = self._journal.index.take(key) if self._resume else None
        if offset is None and self._replay and self._is_repeatable(request):
            offset = self._journal.index.first(key)
        if offset is None:
            return None
        try:
            record = self._journal.read(offset)
        except StoreError as error:
            self._notify(f"a recorded answer could not be read; asking the engine again: {error}")
            return None
        if record.key != key.hex():
            return None
        self._replayed += 1
        return RecordedReply(
            body=record.reply.encode(), content_type=record.content_type, streamed=record.streamed
        )

    def _is_repeatable(self, request: CanonicalRequest) -> bool:
        return request.repeatable or (request.seeded and self._seeds)


def _key_of(request: CanonicalRequest, *, identity: Identity, adapter_digest: str | None) -> bytes:
    parts = (identity.digest, adapter_digest or "", request.digest.hex())
    return hashlib.sha256("\n".join(parts).encode()).digest()


class _Choice(msgspec.Struct, frozen=True):
    index: int = 0
    finish_reason: str | None = None


class _Answer(msgspec.Struct, frozen=True):
    """What says of a reply, or of an event, that it is whole."""

    choices: list[_Choice] = []
    error: Any = None


_decoder = msgspec.json.Decoder(_Answer)


def is_whole(reply: RecordedReply) -> bool:
    """Whether a reply is UTF-8 JSON, or a stream up to its end, that the engine did not abort."""
    try:
        reply.body.decode()
        if not reply.streamed:
            answer = _decoder.decode(reply.body)
            return answer.error is None and not any(map(_is_aborted, answer.choices))
        parser = EventParser()
        events = [*parser.feed(reply.body), *parser.close()]
        answers = [_decoder.decode(event) for event in events if event != _END]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    choices = [choice for answer in answers for choice in answer.choices]
    unfinished = {choice.index for choice in choices} - {
        choice.index for choice in choices if choice.finish_reason is not None
    }
    return (
        events[-1:] == [_END]
        and not unfinished
        and not any(answer.error is not None for answer in answers)
        and not any(map(_is_aborted, choices))
    )


def _is_aborted(choice: _Choice) -> bool:
    return choice.finish_reason in _ABORTED
