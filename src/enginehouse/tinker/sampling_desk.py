"""From samples that clients ask for to the sampling engine: whose weights, and whose turn."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import orjson

from enginehouse.core.errors import EnginehouseError, TinkerError
from enginehouse.tinker.bodies import decoded
from enginehouse.tinker.fair_slots import FairSlots, Load
from enginehouse.tinker.future import Future
from enginehouse.tinker.futures import Futures
from enginehouse.tinker.records.entries import CheckpointRecord
from enginehouse.tinker.sampler_weights import BASE, SamplerWeights, session_of
from enginehouse.tinker.sampling.base import SamplingEngine, TokenPrompt, Weights
from enginehouse.tinker.service_status import SampleLoad
from enginehouse.tinker.wire import decode_sample_request, encode_sampled

logger = logging.getLogger(__name__)

_IDLE: Final = Load(0, 0)
_MINUTE: Final = 60.0


@dataclass(frozen=True, eq=False, kw_only=True)
class Sample:
    """A sample as it was asked for: its prompt, and the request without it."""

    prompt: TokenPrompt
    request: Mapping[str, Any]

    @property
    def sequences(self) -> int:
        """How many sequences the engine computes for it."""
        return self.prompt.samples + self.prompt.positions * max(1, self.prompt.alternatives)

    def tokens(self, *, longest: int) -> int:
        """What it may cost: the tokens of its prompt and of all sequences, `longest` at most."""
        room = max(1, longest - len(self.prompt.tokens))
        wanted = room if self.prompt.max_tokens is None else self.prompt.max_tokens
        return self.cost(self.prompt.samples * min(wanted, room))

    def cost(self, sampled: int) -> int:
        """What it costs if that many tokens are sampled."""
        return len(self.prompt.tokens) + sampled + self.sequences - self.prompt.samples


def decode_sample(body: bytes) -> Sample:
    """The sample in a body. Takes some 50 ms for 3 MB. Raises TinkerError (400)."""
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise TinkerError(f"the body is not JSON: {error}") from None
    prompt = decode_sample_request(request)
    return Sample(prompt=prompt, request=request | {"prompt": {"chunks": []}})


class SamplingDesk:
    """Runs accepted samples on the engine. Every user has an equal share of it: see FairSlots."""

    def __init__(
        self,
        *,
        engine: SamplingEngine,
        futures: Futures,
        weights: SamplerWeights,
        slots: FairSlots,
        most_waiting: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._futures = futures
        self._weights = weights
        self._slots = slots
        self._most_waiting = most_waiting
        self._clock = clock
        self._sampled: deque[tuple[float, str, int]] = deque()
        self._samples: dict[asyncio.Task[None], Future] = {}
        self._preparing: set[asyncio.Task[None]] = set()
        self.sampled_tokens = 0
        """Tokens that were sampled since the service started."""

    @property
    def share(self) -> int:
        """The most sequences that one user may have in the engine."""
        return self._slots.share

    def admit(self, user: str, *, count: int = 1) -> None:
        """Raise TinkerError (429) if the user has too many waiting samples to accept as many more.

        Without any, even more than may wait are accepted.
        """
        waiting = self._slots.load().get(user, _IDLE).waiting
        if waiting + min(count, self._most_waiting) > self._most_waiting:
            raise TinkerError(
                f"{waiting} samples of yours are waiting, as many as this service accepts",
                fix="wait for some of them; the SDK sends this one again by itself",
                status=429,
            )

    def submit(self, future: Future, sample: Sample | None = None) -> None:
        """Answer an accepted sample, in its turn. Without `sample`, its body is decoded then."""
        task = asyncio.create_task(self._answer(future, sample), name=future.request_id)
        self._samples[task] = future
        task.add_done_callback(self._samples.pop)

    async def saved(self, checkpoint: CheckpointRecord) -> None:
        """Take note of weights that a model just saved for sampling, and begin to load them."""
        weights = self._weights.saved(checkpoint)
        task = asyncio.create_task(self._prepare(weights), name=f"prepare {weights.key}")
        self._preparing.add(task)
        task.add_done_callback(self._preparing.discard)

    @asynccontextmanager
    async def slot(self, user: str, *, tokens: int, sequences: int) -> AsyncIterator[None]:
        """Places in the engine for a request that is not a sample, as fair as all others."""
        async with self._slots.slot(user, cost=tokens, places=sequences):
            yield

    def count(self, user: str, reply: Mapping[str, Any], *, charged: int) -> None:
        """Note the tokens that an OpenAI reply says were sampled for a user.

        `charged` is what it was taken to cost.
        """
        usage = reply.get("usage") or {}
        self._count(user, usage.get("completion_tokens") or 0)
        self._slots.charge(user, usage.get("total_tokens", charged) - charged)

    async def cancel_sessions(self, session_ids: Collection[str]) -> int:
        """Cancel what waits for sessions that nobody listens in any more. Returns how many."""
        self._weights.forget_sessions(session_ids)
        cancelled = 0
        for future in list(self._samples.values()):
            if session_of(str(future.details["sampling_session_id"])) in session_ids:
                await self._futures.cancel(future.request_id, user=future.user)
                cancelled += 1
        return cancelled

    async def forget_deleted(self) -> None:
        """Have the engine forget the weights whose checkpoints were deleted or have expired."""
        for weights in self._weights.take_deleted():
            await self._engine.forget(weights)

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 (how long the others may take)
        """Let what runs finish for `timeout` seconds, and leave the rest to the next start."""
        if self._samples:
            await asyncio.wait(list(self._samples), timeout=timeout)
        await self.close()

    async def close(self) -> None:
        """Stop everything that runs; accepted samples stay accepted. Idempotent."""
        tasks = [*self._samples, *self._preparing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def load(self) -> tuple[SampleLoad, ...]:
        """What each user has in the engine and in front of it, and got in the last minute."""
        self._drop_old()
        recent: Counter[str] = Counter()
        for _, user, tokens in self._sampled:
            recent[user] += tokens
        load = self._slots.load()
        return tuple(
            SampleLoad(
                user=user,
                in_flight=load.get(user, _IDLE).running,
                waiting=load.get(user, _IDLE).waiting,
                tokens_per_second=recent[user] / _MINUTE,
            )
            for user in sorted({*load, *recent})
        )

    async def _answer(self, future: Future, sample: Sample | None) -> None:
        sampling = asyncio.create_task(self._sample(future, sample))
        answered = asyncio.create_task(self._futures.until_answered(future))
        try:
            await asyncio.wait({sampling, answered}, return_when=asyncio.FIRST_COMPLETED)
            if sampling.done():
                await self._finish(future, sampling)
        finally:
            for task in (sampling, answered):
                task.cancel()
            await asyncio.gather(sampling, answered, return_exceptions=True)

    async def _finish(self, future: Future, sampling: asyncio.Task[bytes]) -> None:
        try:
            payload = sampling.result()
        except TinkerError as error:
            await self._futures.fail(future, str(error), category=error.category)
        except EnginehouseError as error:
            logger.warning(
                "a sample failed", extra={"request": future.request_id, "why": str(error)}
            )
            await self._futures.fail(future, str(error), category="server")
        except Exception as error:
            logger.exception("a sample failed unexpectedly", extra={"request": future.request_id})
            message = f"an unexpected error in the service: {type(error).__name__}"
            await self._futures.fail(future, message, category="server")
        else:
            await self._futures.finish(future, payload, content_type="application/x-protobuf")

    async def _sample(self, future: Future, sample: Sample | None) -> bytes:
        if sample is None:
            sample = await decoded(await asyncio.to_thread(lambda: future.body), decode_sample)
        places, cost = sample.sequences, sample.tokens(longest=self._engine.max_length)
        if reason := self._slots.why_wait(future.user, places=places):
            self._futures.hold(future, reason, state="paused_capacity")
        async with self._slots.slot(future.user, cost=cost, places=places):
            self._futures.hold(future, None)
            weights = await self._weights_for(future, sample)
            sampled = await self._engine.sample(weights, sample.prompt)
        tokens = sum(len(sequence.tokens) for sequence in sampled.sequences)
        self._count(future.user, tokens)
        self._slots.charge(future.user, sample.cost(tokens) - cost)
        return encode_sampled(sampled, body=sample.request)

    async def _weights_for(self, future: Future, sample: Sample) -> Weights:
        """The weights that a sample is of, as they are now. Raises TinkerError."""
        if (sampler := sample.request.get("sampling_session_id")) is not None:
            return await self._weights.of_sampler(sampler, user=future.user)
        if (path := sample.request.get("model_path")) is not None:
            return await self._weights.of_path(path, user=future.user)
        return BASE

    def _count(self, user: str, tokens: int) -> None:
        self.sampled_tokens += tokens
        self._drop_old()
        self._sampled.append((self._clock(), user, tokens))

    def _drop_old(self) -> None:
        while self._sampled and self._sampled[0][0] < self._clock() - _MINUTE:
            self._sampled.popleft()

    async def _prepare(self, weights: Weights) -> None:
        try:
            await self._engine.prepare(weights)
        except EnginehouseError as error:  # the first sample says so to its user
            logger.warning(
                "an adapter was not loaded", extra={"key": weights.key, "why": str(error)}
            )
