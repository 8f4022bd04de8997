"""One server that answers as its model, as adapters of it, and as other checkpoints, in turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec

from enginehouse.core.errors import ModelError, WeightsError
from enginehouse.core.sampler import Capability
from enginehouse.deployment.configuration import ServeConfig
from enginehouse.deployment.serving import OnIncident, Serving, choose_engine, serving
from enginehouse.dialects.base import require
from enginehouse.engines.base import LoraFlags, SupportsAdapters
from enginehouse.engines.registry import load_engine
from enginehouse.runtime.context import Notify
from enginehouse.store.layout import Layout
from enginehouse.weights.peft_folder import CONFIG, checkpoint_shapes, read_peft_folder
from enginehouse.weights.pool import AdapterPool, alias_of
from enginehouse.weights.store import AdapterStore

_RANK = 64  # where the adapters are not known yet


class Resident:
    """A server of our own and what it is to answer as; one target at a time.

    A sampler of an earlier target must not be used any more.
    """

    def __init__(
        self, ready: Serving, pool: AdapterPool | None, *, concurrency: int | None
    ) -> None:
        self.serving = ready
        self._pool = pool
        self._concurrency = concurrency
        self._stack = AsyncExitStack()

    async def target(self, path: Path | None) -> Serving:
        """Have the server answer as the adapter or checkpoint in `path`; None is its own model.

        An adapter is checked, copied, loaded, and proven to have an effect where the engine tells
        log-probabilities of prompts and it was trained at all. Raises AdapterError, ModelError or
        WeightsError, and leaves the server as it was.
        """
        await self._stack.aclose()
        if path is not None and (path / CONFIG).exists():
            return await self._adapter(path)
        await self._weights(path)
        swapper = self.serving.weights
        if path is None or swapper is None:
            return self.serving
        provenance = msgspec.structs.replace(
            self.serving.provenance, model=str(path), weights_digest=swapper.current.digest
        )
        return replace(self.serving, provenance=provenance)

    async def _weights(self, path: Path | None) -> None:
        model, swapper = self.serving.model, self.serving.weights
        assert model is not None
        folder = path or Path(model.path)
        if swapper is None and path is not None:
            raise WeightsError(
                f"the weights of {self.serving.server.name} cannot be swapped while it runs",
                fix="serve the checkpoint by itself, or with vLLM and enable_weight_swap",
                kind="unsupported",
            )
        # a folder that is named again may hold something else by now
        if swapper is not None and (path is not None or swapper.current.path != folder):
            await swapper.swap(folder)

    async def _adapter(self, folder: Path) -> Serving:
        if self._pool is None:
            raise ModelError(
                f"{folder} is an adapter, and the server was started without LoRA",
                fix="give --enable-lora",
            )
        await self._weights(None)
        supports = self.serving.engine.capabilities(self.serving.server.version).supports
        info = await asyncio.to_thread(read_peft_folder, folder)
        loaded = await self._pool.load(
            alias_of(folder),
            folder,
            prove=Capability.PROMPT_LOGPROBS in supports and not info.is_zero,
        )
        sampler = await self._stack.enter_async_context(
            self.serving.sampler_of(loaded.model, self._concurrency)
        )
        provenance = msgspec.structs.replace(
            self.serving.provenance, model=loaded.model, adapter_digest=loaded.stored.digest
        )
        return replace(
            self.serving, sampler=sampler, provenance=provenance, adapter=loaded.stored.path
        )

    async def close(self) -> None:
        """Close the last target's connections."""
        await self._stack.aclose()


@asynccontextmanager
async def resident(
    config: ServeConfig,
    *,
    layout: Layout,
    notify: Notify,
    concurrency: int | None = None,
    on_incident: OnIncident = lambda _: None,
) -> AsyncIterator[Resident]:
    """Serve `config.model` for the length of the block; adapters where LoRA is enabled.

    `config.adapter` is not loaded: ask for it as a target. Raises what `serving` does.
    """
    async with serving(
        config, layout=layout, notify=notify, concurrency=concurrency, on_incident=on_incident
    ) as ready:
        pool = None
        async with AsyncExitStack() as stack:
            if config.server.enable_lora:
                assert ready.model is not None
                aside = await stack.enter_async_context(
                    ready.sampler_of(ready.server.models[0], None)
                )
                pool = AdapterPool(
                    aside,
                    max_loras=config.server.max_loras or 1,
                    store=AdapterStore(layout),
                    base=await asyncio.to_thread(checkpoint_shapes, Path(ready.model.path)) or None,
                    max_rank=config.server.max_lora_rank,
                )
                ready.after_restart(pool.restore)
            lodger = Resident(ready, pool, concurrency=concurrency)
            stack.push_async_callback(lodger.close)
            yield lodger


@asynccontextmanager
async def serving_target(
    config: ServeConfig,
    *,
    layout: Layout,
    notify: Notify,
    concurrency: int | None = None,
    on_incident: OnIncident = lambda _: None,
) -> AsyncIterator[Serving]:
    """As `serving`; where the configuration names an adapter, that is what answers."""
    if config.adapter is None:
        async with serving(
            config, layout=layout, notify=notify, concurrency=concurrency, on_incident=on_incident
        ) as ready:
            yield ready
        return
    prepared = await asyncio.to_thread(with_adapters, config, [config.adapter])
    async with resident(
        prepared, layout=layout, notify=notify, concurrency=concurrency, on_incident=on_incident
    ) as lodger:
        ready = await lodger.target(config.adapter)
        notify(f"adapter: {config.adapter}, loaded as {ready.provenance.model}")
        yield ready


def with_weight_swap(config: ServeConfig) -> ServeConfig:
    """The configuration of a server that can be given other checkpoints, if its engine can."""
    engine = load_engine(choose_engine(config.engine, notify=lambda _: None))
    if engine.wire.weights is None:
        return config
    options = config.server.model_copy(update={"enable_weight_swap": True})
    return config.model_copy(update={"server": options})


def with_adapters(config: ServeConfig, folders: Iterable[Path] = ()) -> ServeConfig:
    """The configuration with LoRA enabled, for ranks as large as those of `folders`.

    What the configuration says itself holds. Blocking. Raises AdapterError for a folder that holds
    no adapter, UnsupportedError for an engine that takes none.
    """
    engine = load_engine(choose_engine(config.engine, notify=lambda _: None))
    require(engine.capabilities(None), Capability.ADAPTERS, "LoRA adapters")
    needed = max((read_peft_folder(folder).rank for folder in folders), default=_RANK)
    options = config.server
    lora = engine.lora if isinstance(engine, SupportsAdapters) else LoraFlags()
    rank = options.max_lora_rank or lora.rank_for(needed)
    options = options.model_copy(update={"enable_lora": True, "max_lora_rank": rank})
    return config.model_copy(update={"server": options})
