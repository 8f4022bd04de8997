"""Samples from a main engine, and from a second one what the main engine cannot answer.

The second one is started when the first adapter needs it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from enginehouse.dialects.openai_bodies import scores_asked
from enginehouse.runtime.context import Notify
from enginehouse.tinker.sampling.base import Sampled, SamplingEngine, TokenPrompt, Weights
from enginehouse.tinker.sampling.errors import as_tinker_errors
from enginehouse.tinker.sampling.output_layer import OutputLayer

Opening = Callable[[], AbstractAsyncContextManager[SamplingEngine]]


@asynccontextmanager
async def paired_sampling(
    main: SamplingEngine,
    opening: Opening,
    *,
    second: str,
    output_layer: OutputLayer,
    notify: Notify,
) -> AsyncIterator[PairedSampling]:
    """Sample from `main`, and from what `opening` opens, for the length of the block.

    `second` is the name of the latter's engine; `output_layer` says what of an adapter of it
    `main` answers rightly.
    """
    paired = PairedSampling(main, opening, second=second, output_layer=output_layer, notify=notify)
    try:
        yield paired
    finally:
        await paired.close()


class PairedSampling:
    """A SamplingEngine of two: each adapter is answered by the one that applies all of it."""

    def __init__(
        self,
        main: SamplingEngine,
        opening: Opening,
        *,
        second: str,
        output_layer: OutputLayer,
        notify: Notify,
    ) -> None:
        self.main = main
        self._opening = opening
        self._second_name = second
        self._output_layer = output_layer
        self._notify = notify
        self._second: SamplingEngine | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._started: asyncio.Future[SamplingEngine] | None = None
        self._ending = asyncio.Event()

    @property
    def description(self) -> Mapping[str, Any]:
        """See SamplingEngine; `unembedding` says who answers for adapters of the output layer.

        That is the engine that samples, and the one that scores prompts.
        """
        main, second, layer = self.main.description, self._second, self._output_layer
        other = self._second_name
        described = {
            **main,
            "unembedding": {
                "answered_by": main["engine"] if layer.answers else other,
                "prompts_scored_by": main["engine"] if layer.answers and layer.prompts else other,
                "why": layer.why,
            },
        }
        return described | ({"second": second.description} if second else {})

    @property
    def max_length(self) -> int:
        """See SamplingEngine."""
        return self.main.max_length

    async def prepare(self, weights: Weights) -> None:
        """See SamplingEngine."""
        await (await self._engine(weights)).prepare(weights)

    async def sample(self, weights: Weights, prompt: TokenPrompt) -> Sampled:
        """See SamplingEngine."""
        scored = prompt.prompt_logprobs_from is not None
        return await (await self._engine(weights, scored=scored)).sample(weights, prompt)

    async def complete(self, weights: Weights, path: str, body: Mapping[str, Any]) -> Any:
        """See SamplingEngine."""
        engine = await self._engine(weights, scored=scores_asked(body).prompt_logprobs is not None)
        return await engine.complete(weights, path, body)

    async def stream(self, weights: Weights, path: str, body: Mapping[str, Any]) -> Any:
        """See SamplingEngine."""
        engine = await self._engine(weights, scored=scores_asked(body).prompt_logprobs is not None)
        return await engine.stream(weights, path, body)

    async def forget(self, weights: Weights) -> None:
        """See SamplingEngine."""
        await self.main.forget(weights)
        if self._second is not None:
            await self._second.forget(weights)

    async def close(self) -> None:
        """End the second engine. Idempotent."""
        self._ending.set()
        if self._keeping is not None:
            if self._second is None:  # it is being started
                self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)

    async def _engine(self, weights: Weights, *, scored: bool = False) -> SamplingEngine:
        """Who answers. Raises TinkerError if the second engine does not start."""
        layer = self._output_layer
        if not weights.unembed or (layer.answers and (layer.prompts or not scored)):
            return self.main
        if self._second is not None:
            return self._second
        if self._started is None or self._keeping is None or self._keeping.done():
            self._notify(
                f"starting {self._second_name} beside {self.main.description['engine']}, which "
                f"does not apply all of an adapter of the output layer ({layer.why})"
            )
            self._started = asyncio.get_running_loop().create_future()
            self._keeping = asyncio.create_task(self._keep(self._started))
        with as_tinker_errors():
            return await asyncio.shield(self._started)

    async def _keep(self, started: asyncio.Future[SamplingEngine]) -> None:
        """Run the second engine until this one ends: who opens it must also close it."""
        try:
            async with self._opening() as second:
                self._second = second
                started.set_result(second)
                await self._ending.wait()
        except asyncio.CancelledError:
            started.cancel()
            raise
        except Exception as error:  # noqa: BLE001 (raised by those who wait for it)
            if started.done():
                self._notify(f"the second engine has failed, and is started when needed: {error}")
            else:
                started.set_exception(error)
                started.exception()  # marks it as retrieved: the waiter may have given up
        finally:
            self._second = None
