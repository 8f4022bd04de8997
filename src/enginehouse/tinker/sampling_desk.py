"""From samples that clients ask for to the sampling engine: whose weights, and whose turn."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import orjson

from enginehouse.core.errors import EnginehouseError, TinkerError
from enginehouse.tinker.bodies import decoded
from enginehouse.tinker.checkpoints import CheckpointStore
from enginehouse.tinker.fair_slots import FairSlots, Load
from enginehouse.tinker.future import Future
from enginehouse.tinker.futures import Futures
from enginehouse.tinker.records.entries import CheckpointRecord, SamplingSessionRecord
from enginehouse.tinker.records.records import Records
from enginehouse.tinker.sampling.base import SamplingEngine, TokenPrompt, Weights
from enginehouse.tinker.service_status import SampleLoad
from enginehouse.tinker.wire import decode_sample_request, encode_sampled

logger = logging.getLogger(__name__)

BASE: Final = Weights(key="base")
_IDLE: Final = Load(0, 0)
_MINUTE: Final = 60.0
_UNSTATED: Final = 256  # tokens that a sample without max_tokens is taken to cost


@dataclass(frozen=True, eq=False, kw_only=True)
class Sample:
    """A sample as it was asked for: its prompt, and the request without it."""

    prompt: TokenPrompt
    request: Mapping[str, Any]

    @property
    def tokens(self) -> int:
        """What it may cost: the tokens of its prompt and of all sequences."""
        wanted = self.prompt.max_tokens if self.prompt.max_tokens is not None else _UNSTATED
        return len(self.prompt.tokens) + self.prompt.samples * wanted


def decode_sample(body: bytes) -> Sample:
    """The sample in a body. Takes some 50 ms for 3 MB. Raises TinkerError (400)."""
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise TinkerError(f"the body is not JSON: {error}") from None
    prompt = decode_sample_request(request)
    return Sample(prompt=prompt, request=request | {"prompt": {"chunks": []}})


class SamplingDesk:
    """Runs accepted samples on the engine. Every user has an equal share of it: see FairSlots.

    A sampling session's weights never change, except that one which follows a model samples from
    the newest weights which that model saved.
    """

    def __init__(
        self,
        *,
        engine: SamplingEngine,
        futures: Futures,
        records: Records,
        checkpoints: CheckpointStore,
        slots: FairSlots,
        most_waiting: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._futures = futures
        self._records = records
        self._checkpoints = checkpoints
        self._slots = slots
        self._most_waiting = most_waiting
        self._clock = clock
        self._sampled: deque[tuple[float, str, int]] = deque()
        self._samplers: dict[str, SamplingSessionRecord] = {}
        self._weights: dict[str, Weights] = {}
        self._newest: dict[str, Weights] = {}
        self._used: dict[str, Weights] = {}
        self._samples: dict[asyncio.Task[None], Future] = {}
        self._preparing: set[asyncio.Task[None]] = set()
        self.sampled_tokens = 0
        """Tokens that were sampled since the service started."""

    def admit(self, user: str) -> None:
        """Raise TinkerError (429) if the user has too many waiting samples to accept another."""
        waiting = self._slots.load().get(user, _IDLE).waiting
        if waiting >= self._most_waiting:
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
        weights = self._of(checkpoint)
        self._newest[checkpoint.model_id] = weights
        task = asyncio.create_task(self._prepare(weights), name=f"prepare {weights.key}")
        self._preparing.add(task)
        task.add_done_callback(self._preparing.discard)

    async def sampler(self, sampling_session_id: str, *, user: str) -> SamplingSessionRecord:
        """A sampling session of the user, from memory if it can be. Raises TinkerError (404)."""
        known = self._samplers.get(sampling_session_id)
        if known is None or known.user != user:
            known = await self._records.sampling_session(sampling_session_id, user=user)
            self._samplers[sampling_session_id] = known
        return known

    @asynccontextmanager
    async def slot(self, user: str, *, tokens: int) -> AsyncIterator[None]:
        """A place in the engine for a request that is not a sample, as fair as all others."""
        async with self._slots.slot(user, cost=tokens):
            yield

    def weights_of(self, checkpoint: CheckpointRecord) -> Weights:
        """The weights of a checkpoint. Raises TinkerError if it was made for something else."""
        if checkpoint.kind != "sampler":
            raise TinkerError(
                f"{checkpoint.path} cannot be sampled from: it was saved to continue training",
                fix="save it with save_weights_for_sampler",
            )
        return self._of(checkpoint)

    async def cancel_sessions(self, session_ids: Sequence[str]) -> int:
        """Cancel what waits for sessions that nobody listens in any more. Returns how many."""
        gone = set(session_ids)
        for name in [name for name in self._samplers if _session_of(name) in gone]:
            del self._samplers[name]
            self._weights.pop(name, None)
        cancelled = 0
        for future in list(self._samples.values()):
            if _session_of(str(future.details["sampling_session_id"])) in gone:
                await self._futures.cancel(future.request_id, user=future.user)
                cancelled += 1
        return cancelled

    async def forget_deleted(self) -> None:
        """Have the engine forget the weights whose checkpoints were deleted or have expired."""
        gone = [w for w in self._used.values() if w.folder is not None and not w.folder.exists()]
        for weights in gone:
            del self._used[weights.key]
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
        while self._sampled and self._sampled[0][0] < self._clock() - _MINUTE:
            self._sampled.popleft()
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
        if reason := self._slots.why_wait(future.user):
            self._futures.hold(future, reason, state="paused_capacity")
        async with self._slots.slot(future.user, cost=sample.tokens):
            self._futures.hold(future, None)
            weights = await self._weights_for(future, sample)
            sampled = await self._engine.sample(weights, sample.prompt)
        tokens = sum(len(sequence.tokens) for sequence in sampled.sequences)
        self.sampled_tokens += tokens
        self._sampled.append((self._clock(), future.user, tokens))
        return encode_sampled(sampled, body=sample.request)

    async def _weights_for(self, future: Future, sample: Sample) -> Weights:
        """The weights that a sample is of, as they are now. Raises TinkerError."""
        sampling_session_id = sample.request.get("sampling_session_id")
        if sampling_session_id is None:
            path = sample.request.get("model_path")
            if path is None:
                return BASE
            return self.weights_of(await self._records.checkpoint(path, user=future.user))
        sampler = await self.sampler(sampling_session_id, user=future.user)
        if sampler.follows is not None:
            return await self._newest_of(sampler.follows)
        if sampler.checkpoint is None:
            return BASE
        weights = self._weights.get(sampling_session_id)
        if weights is None or not (weights.folder and weights.folder.exists()):
            checkpoint = await self._records.checkpoint(sampler.checkpoint, user=sampler.user)
            if checkpoint.created > sampler.created:
                raise TinkerError(
                    f"the weights of {sampling_session_id} were deleted",
                    why=f"other weights were saved as {checkpoint.path} afterwards",
                    fix="make a new sampling client",
                    status=404,
                )
            weights = self._weights[sampling_session_id] = self.weights_of(checkpoint)
        return weights

    async def _newest_of(self, model_id: str) -> Weights:
        """The weights that the model saved last for sampling."""
        weights = self._newest.get(model_id)
        if weights is None or not (weights.folder and weights.folder.exists()):
            # saved before the service was restarted, or deleted
            saved = await self._records.last_checkpoints([model_id], user=None)
            if (model_id, "sampler") not in saved:
                raise TinkerError(
                    f"no weights of {model_id} are left to sample from",
                    fix="save them again: save_weights_and_get_sampling_client()",
                    status=404,
                )
            weights = self._newest[model_id] = self._of(saved[model_id, "sampler"])
        return weights

    def _of(self, checkpoint: CheckpointRecord) -> Weights:
        weights = Weights(
            key=checkpoint.folder,  # a path can be saved again when its checkpoint was deleted
            folder=self._checkpoints.folder(checkpoint),
            unembed=checkpoint.unembed,
        )
        self._used[weights.key] = weights
        return weights

    async def _prepare(self, weights: Weights) -> None:
        try:
            await self._engine.prepare(weights)
        except EnginehouseError as error:  # the first sample says so to its user
            logger.warning(
                "an adapter was not loaded", extra={"key": weights.key, "why": str(error)}
            )


def _session_of(sampling_session_id: str) -> str:
    return sampling_session_id.rpartition(":sample:")[0]
