"""Samples from one deployment: a server of our own or somebody else's, and adapters on it."""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, TypeVar

import msgspec
import numpy as np

from enginehouse.client.exchange import Reply
from enginehouse.core.errors import (
    AdapterError,
    EnginehouseError,
    NoEffectError,
    TinkerError,
    UnknownModelError,
)
from enginehouse.deployment.base import Deployment
from enginehouse.dialects.openai_bodies import scores_asked
from enginehouse.engines.base import ServedEngine
from enginehouse.runtime.context import Notify
from enginehouse.tinker.sampling import base, requests
from enginehouse.tinker.sampling.amplified import amplified
from enginehouse.tinker.sampling.base import LogprobScale, Sampled, TokenPrompt, Weights
from enginehouse.tinker.sampling.errors import as_tinker_errors
from enginehouse.tinker.sampling.prefixes import draw_alternatives, score_targets, together
from enginehouse.tinker.sampling.prompts import tokens_wanted
from enginehouse.weights.pool import AdapterPool
from enginehouse.weights.residence import State
from enginehouse.weights.served_models import served_models
from enginehouse.weights.store import UncopiedAdapters

T = TypeVar("T")
_Modules = tuple[str, ...]
_AMPLIFIED = (1e3, 1e6)


@asynccontextmanager
async def deployed_sampling(
    deployment: Deployment, *, logprobs: LogprobScale, max_loras: int, at_once: int, notify: Notify
) -> AsyncIterator[DeployedSampling]:
    """Sample from an open deployment for the length of the block.

    `logprobs` is what its server was started to give. Of one request, at most `at_once` sequences
    are in the engine. Raises WireError.
    """
    engine = deployment.engine
    assert isinstance(engine, ServedEngine), "an engine that loads adapters is one that is served"
    own, *_ = await served_models(deployment.server, engine)
    store = UncopiedAdapters()
    async with deployment.adapters(store, max_loras=max_loras, for_many=True) as pool:
        sampling = DeployedSampling(
            deployment,
            pool,
            store,
            # of the whole, one token is kept, so that the longest prompt can be scored
            max_length=(own.max_model_len or 2048) - 1,
            logprobs=logprobs,
            at_once=at_once,
            notify=notify,
        )
        try:
            yield sampling
        finally:
            await sampling.close()


class DeployedSampling:
    """A SamplingEngine on one deployment. Its adapters are loaded from where they are.

    An adapter is proven while its first requests are computed, and no answer of it is given
    before it is proven.
    """

    def __init__(
        self,
        deployment: Deployment,
        pool: AdapterPool,
        store: UncopiedAdapters,
        *,
        max_length: int,
        logprobs: LogprobScale,
        at_once: int,
        notify: Notify,
    ) -> None:
        self.deployment = deployment
        self.pool = pool
        self._store = store
        self._sampler = deployment.sampler
        self._max_length = max_length
        self._logprobs = logprobs
        self._at_once = at_once
        self._notify = notify
        self._loaded: dict[str, Weights] = {}  # by alias
        self._proofs: dict[str, asyncio.Task[None]] = {}  # of those that are not proven yet
        self._leaving: set[asyncio.Task[None]] = set()
        self._acting: set[_Modules] = set()  # sets of modules that the engine applies
        self._faint: dict[str, _Modules] = {}  # by alias; those that only such a set speaks for
        self._doubted: dict[str, _Modules] = {}  # as `_faint`, from before the last restart
        self._restarts = pool.restarts
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @property
    def description(self) -> Mapping[str, Any]:
        """See SamplingEngine."""
        server = self.deployment.server
        return {
            "engine": server.engine,
            "version": server.version,
            "url": server.base_url,
            "log_probabilities": self._logprobs,
            "adapters": sorted(weights.key for weights in self._loaded.values()),
            "resident": sorted(
                self._loaded[adapter.alias].key
                for adapter in self.pool.adapters()
                if adapter.state is State.IN and adapter.alias in self._loaded
            ),
        }

    @property
    def max_length(self) -> int:
        """See SamplingEngine."""
        return self._max_length

    async def prepare(self, weights: Weights) -> None:
        """See SamplingEngine."""
        if weights.folder is not None:
            with as_tinker_errors():
                await _ended(self._proofs.get(await self._alias(weights)))

    async def forget(self, weights: Weights) -> None:
        """See SamplingEngine."""
        alias = _alias_of(weights)
        async with self._turns[alias]:
            self._doubted.pop(alias, None)
            self._faint.pop(alias, None)
            if self._loaded.pop(alias, None) is not None:
                if (proof := self._proofs.get(alias)) is not None:
                    proof.cancel()
                    await asyncio.gather(proof, return_exceptions=True)
                with as_tinker_errors():
                    await self._unload(weights, alias)
        self._turns.pop(alias, None)

    async def close(self) -> None:
        """End what is in progress. Idempotent."""
        tasks = [*self._proofs.values(), *self._leaving]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def sample(self, weights: Weights, prompt: TokenPrompt) -> Sampled:
        """See SamplingEngine."""
        count = tokens_wanted(prompt, max_length=self._max_length)
        return await self._answered(weights, lambda model: self._sample(prompt, model, count))

    async def complete(self, weights: Weights, path: str, body: Mapping[str, Any]) -> Any:
        """See SamplingEngine."""

        async def post(model: str) -> bytes:
            return await self._sampler.post(path, _encoded(body, model), scores=scores_asked(body))

        reply = msgspec.json.decode(await self._answered(weights, post))
        return {**reply, "model": body.get("model")}

    async def stream(self, weights: Weights, path: str, body: Mapping[str, Any]) -> Any:
        """See SamplingEngine."""

        async def post(model: str) -> Reply:
            return await self._sampler.post_streamed(
                path, _encoded(body, model), scores=scores_asked(body)
            )

        restarts = self.pool.restarts
        await self.prepare(weights)  # what has been streamed cannot be withheld any more
        async with AsyncExitStack() as stack:
            with as_tinker_errors():
                if weights.folder is None:
                    reply = await post(self._sampler.model)
                else:
                    held = self.pool.held(await self._alias(weights))
                    reply = await self._ask(post, await stack.enter_async_context(held))
            stack.callback(reply.close)
            if self.pool.restarts != restarts:  # the reply may be of the engine's next life
                await self.prepare(weights)
            assert reply.wire.chunks is not None, "it was asked for a stream"
            return _Stream(reply.wire.chunks, stack.pop_all())

    async def _answered(self, weights: Weights, ask: Callable[[str], Awaitable[T]]) -> T:
        """What the weights answer, once they are proven. Raises TinkerError."""
        with as_tinker_errors():
            if weights.folder is None:
                return await ask(self._sampler.model)
            restarts = self.pool.restarts
            alias = await self._alias(weights)
            proof = self._proofs.get(alias)  # now: one that has failed is not kept
            try:
                async with self.pool.held(alias) as model:
                    answer = await self._ask(ask, model)
            except AdapterError:  # it could not be restored after a restart
                self._begin_leaving(weights, alias)
                raise
            await _ended(proof)
            if self.pool.restarts != restarts:  # the answer may be of the engine's next life
                await self.prepare(weights)
            return answer

    async def _ask(self, ask: Callable[[str], Awaitable[T]], model: str) -> T:
        """Ask an adapter; once more if the server has lost it without our knowledge.

        Another program's server may when it is restarted.
        """
        try:
            return await ask(model)
        except UnknownModelError:
            await self.pool.restore_unannounced()
            return await ask(model)

    async def _sample(self, prompt: TokenPrompt, model: str, count: int) -> Sampled:
        scored = prompt.prompt_logprobs_from is not None
        at_once = scored and prompt.samples == count == 1
        work = [self._sequences(prompt, model, count, scored=at_once)]
        if scored and not at_once:
            work.append(self._scores(prompt, model))
        fields: dict[str, Any] = {}
        for part in await together(work):
            fields |= part
        if prompt.targets is not None:
            fields["target_logprobs"] = await score_targets(
                self._sampler, prompt, model=model, at_once=self._at_once
            )
        if prompt.alternatives:
            fields["alternatives"] = await draw_alternatives(
                self._sampler, prompt, model=model, at_once=self._at_once
            )
        return Sampled(**fields)

    async def _sequences(
        self, prompt: TokenPrompt, model: str, count: int, *, scored: bool
    ) -> dict[str, Any]:
        if count == 0:
            none = np.array([], np.int32)
            empty = base.Sequence(tokens=none, logprobs=none.astype(np.float32), stopped=False)
            return {"sequences": (empty,) * prompt.samples}
        made: list[base.Sequence] = []
        fields: dict[str, Any] = {}
        greedy = prompt.temperature == 0  # all samples are the same
        wanted = 1 if greedy else prompt.samples
        for start in range(0, wanted, self._at_once):
            # engines give the samples of one request the seeds that follow its own
            seed = None if prompt.seed is None else prompt.seed + start
            part = replace(prompt, samples=min(wanted - start, self._at_once), seed=seed)
            asked = requests.answering(part, model=model, count=count, scored=scored)
            response = await self._sampler.sample(asked)
            fields |= requests.scores_of(response, prompt) if scored else {}
            made += [
                requests.sequence_of(completion, candidates=prompt.sample_top_k)
                for completion in response.completions
            ]
        return {"sequences": tuple(made * prompt.samples if greedy else made), **fields}

    async def _scores(self, prompt: TokenPrompt, model: str) -> dict[str, Any]:
        response = await self._sampler.sample(requests.scoring(prompt, model=model))
        return requests.scores_of(response, prompt)

    async def _alias(self, weights: Weights) -> str:
        """The alias of an adapter that has been loaded, and whose proof has begun."""
        alias = _alias_of(weights)
        self._notice_restarts()
        if alias in self._doubted:
            self._begin_proof(weights, alias, self._doubted.pop(alias))
        if alias not in self._loaded:
            async with self._turns[alias]:
                if alias not in self._loaded:
                    assert weights.folder is not None
                    loaded = await self.pool.load(alias, weights.folder, owner=weights.owner)
                    self._loaded[alias] = weights
                    if loaded.stored.info.is_zero:
                        self._notify(f"{weights.key} changes nothing: it has not been trained")
                    else:
                        self._begin_proof(weights, alias, loaded.stored.info.modules)
        return alias

    def _notice_restarts(self) -> None:
        """Believe no longer what was found out about an engine that has been started again.

        The pool proves those again that have an effect of their own.
        """
        if self._restarts != self.pool.restarts:
            self._restarts = self.pool.restarts
            self._acting.clear()
            self._doubted |= self._faint
            self._faint.clear()

    def _begin_proof(self, weights: Weights, alias: str, modules: _Modules) -> None:
        task = asyncio.create_task(self._prove(weights, alias, modules))
        self._proofs[alias] = task

        def ended(task: asyncio.Task[None]) -> None:
            self._proofs.pop(alias, None)
            if not task.cancelled() and task.exception() is not None:
                self._begin_leaving(weights, alias)

        task.add_done_callback(ended)

    def _begin_leaving(self, weights: Weights, alias: str) -> None:
        """Have the next request load the adapter again, as if it were new."""
        self._loaded.pop(alias, None)
        self._doubted.pop(alias, None)
        self._faint.pop(alias, None)
        leaving = asyncio.create_task(self._leave(weights, alias))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    async def _prove(self, weights: Weights, alias: str, modules: _Modules) -> None:
        """Prove that an adapter acts, or else that the engine applies what it consists of."""
        try:
            await self.pool.prove(alias)
        except NoEffectError as error:
            if modules not in self._acting:
                await self._prove_amplified(weights, alias, error)
            self._notify(f"{weights.key} acts, but changes less than rounding does so far")
            self._faint[alias] = modules
        self._acting.add(modules)

    async def _leave(self, weights: Weights, alias: str) -> None:
        """Unload one that could not be proven or restored, once its requests have ended."""
        async with self._turns[alias]:
            if alias not in self._loaded:
                with suppress(EnginehouseError):
                    await self._unload(weights, alias)

    async def _prove_amplified(self, weights: Weights, alias: str, error: NoEffectError) -> None:
        """Prove copies of an adapter with a larger alpha, as its own effect is lost in rounding.

        The first steps of a training change less than bfloat16 can tell. Raises `error` if the
        copies change nothing either, and AdapterError.
        """
        assert weights.folder is not None
        copy = f"{alias}-amplified"
        for times in _AMPLIFIED:
            with amplified(weights.folder, times=times) as folder:
                await self.pool.load(copy, folder, owner=weights.owner)
                try:
                    await self.pool.prove(copy)
                except NoEffectError:
                    continue
                finally:
                    await self.pool.unload(copy)
                    self._store.forget(folder)
                return
        raise error

    async def _unload(self, weights: Weights, alias: str) -> None:
        await self.pool.unload(alias)
        if weights.folder is not None:
            self._store.forget(weights.folder)


async def _ended(proof: asyncio.Task[None] | None) -> None:
    """Wait for the end of a proof, if there is one. Raises what it raised."""
    if proof is None:
        return
    await asyncio.wait([proof])
    if proof.cancelled():
        raise TinkerError(
            "the weights were removed while they were asked", fix="save them again", status=404
        )
    proof.result()


class _Stream:
    """The pieces of a reply; the adapter is held until they have been read, or it is closed."""

    def __init__(self, pieces: AsyncIterator[bytes], held: AsyncExitStack) -> None:
        self._pieces = pieces
        self._held = held

    def __aiter__(self) -> _Stream:
        return self

    async def __anext__(self) -> bytes:
        try:
            with as_tinker_errors():
                return await anext(self._pieces)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Stop reading. Idempotent."""
        await self._held.aclose()


def _alias_of(weights: Weights) -> str:
    """A name that an engine's URLs and logs can hold, whatever the key is."""
    return hashlib.sha256(weights.key.encode()).hexdigest()[:24]


def _encoded(body: Mapping[str, Any], model: str) -> bytes:
    return msgspec.json.encode({**body, "model": model})
