"""The adapters of a server that runs already: load, list, unload, verify.

What is known of them is what the server lists: ALIAS@DIGEST, and the folder in our store.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

import msgspec

from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.errors import AdapterError, EnginehouseError, UnknownNameError
from enginehouse.core.sampler import Capability
from enginehouse.deployment.reference_scores import score_with_peft
from enginehouse.deployment.running_servers import (
    RunningServer,
    demand_adapters,
    find_running,
    largest_rank,
)
from enginehouse.deployment.serving import make_sampler
from enginehouse.dialects.base import require
from enginehouse.engines.base import Engine, ServedEngine
from enginehouse.runtime.context import Notify
from enginehouse.servers.endpoint import Server
from enginehouse.statistics.parity import TokenParity
from enginehouse.store.layout import Layout
from enginehouse.weights.peft_folder import PeftFolder, checkpoint_shapes, read_peft_folder
from enginehouse.weights.pool import AdapterPool, alias_of
from enginehouse.weights.proof import Effect, prove_effect
from enginehouse.weights.served_models import ServedModel, served_models
from enginehouse.weights.store import AdapterStore

Proof = Literal["none", "effect", "peft"]


class ServedAdapter(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter that a server has. Requests name `model`.

    `digest` is its content's, or the first 12 of it; empty where somebody else loaded it.
    """

    alias: str
    model: str
    digest: str
    path: str | None


class ProvenAdapter(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter, and what was proven of it: that it has an effect, and that of PEFT's own."""

    adapter: ServedAdapter
    effect: Effect | None
    parity: TokenParity | None


@asynccontextmanager
async def adapters_of(target: str, *, layout: Layout, notify: Notify) -> AsyncIterator[Adapters]:
    """Those of the server called `target`, or at that address.

    Raises UnknownNameError, and WireError for a server that cannot be used.
    """
    running = await find_running(target, layout=layout)
    async with adapters_on(running.server, running.engine, layout=layout, notify=notify) as its:
        yield its


async def lend(
    server: Server,
    engine: Engine,
    *,
    folder: Path,
    layout: Layout,
    notify: Notify,
    alias: str | None = None,
) -> Server:
    """The server with the adapter in `folder` loaded and proven, as the first of its models.

    `alias` None is the folder's own name. One that was never trained has no effect, and is lent
    nevertheless. Raises UnsupportedError for an engine that takes none, AdapterError.
    """
    info = await asyncio.to_thread(read_peft_folder, folder)
    if info.is_zero:
        notify(f"{folder} changes nothing: it has not been trained")
    async with adapters_on(server, engine, layout=layout, notify=notify) as its:
        loaded = await its.load(
            alias or alias_of(folder),
            folder,
            proof="none" if info.is_zero else "effect",
            replace_alias=False,
        )
    name = loaded.adapter.model
    others = (model for model in server.models if model != name)
    return replace(server, models=(name, *others))


@asynccontextmanager
async def adapters_on(
    server: Server, engine: Engine, *, layout: Layout, notify: Notify
) -> AsyncIterator[Adapters]:
    """Those of a server that is known. Raises UnsupportedError for an engine that takes none."""
    require(engine.capabilities(server.version), Capability.ADAPTERS, "LoRA adapters")
    assert isinstance(engine, ServedEngine), "an engine that takes adapters is one that is served"
    running = RunningServer(record=None, server=server, engine=engine)
    # one at a time: together, what is asked here would kill some servers
    async with make_sampler(server, engine, concurrency=1) as sampler:
        yield Adapters(running, sampler, layout=layout, notify=notify)


class Adapters:
    """What can be done with the adapters of one server."""

    def __init__(
        self, running: RunningServer, sampler: HTTPSampler, *, layout: Layout, notify: Notify
    ) -> None:
        self._running = running
        self._sampler = sampler
        self._layout = layout
        self._notify = notify

    async def list(self) -> tuple[ServedAdapter, ...]:
        """Those that the server has, whoever loaded them."""
        served = await served_models(self._running.server, self._running.engine)
        return tuple(
            ServedAdapter(
                alias=model.id.partition("@")[0],
                model=model.id,
                digest=model.id.partition("@")[2],
                path=model.root,
            )
            for model in served
            if model.parent is not None
        )

    async def load(
        self, alias: str, folder: Path, *, proof: Proof = "effect", replace_alias: bool = True
    ) -> ProvenAdapter:
        """Check and copy the adapter in `folder`, load it, prove it.

        Others of the same alias are unloaded then, unless `replace_alias` is false; requests under
        way for them are answered. Raises AdapterError, with the server as it was.
        """
        demand_adapters(self._running.server, layout=self._layout)
        served = await self.list()
        base, *_ = await served_models(self._running.server, self._running.engine)
        root = _here(base.root)
        shapes = await asyncio.to_thread(checkpoint_shapes, root) if root else None
        pool = AdapterPool(
            self._sampler,
            max_loras=1,
            store=AdapterStore(self._layout),
            base=shapes or None,
            max_rank=largest_rank(self._running.server, layout=self._layout),
        )
        loaded = await pool.load(alias, folder)
        adapter = ServedAdapter(
            alias=alias,
            model=loaded.model,
            digest=loaded.stored.digest,
            path=str(loaded.stored.path),
        )
        try:
            proven = await self._proven(adapter, base, loaded.stored.info, proof=proof)
        except BaseException:
            if adapter.model not in [one.model for one in served]:
                with suppress(EnginehouseError):
                    await self._sampler.unload_adapter(adapter.model)
            raise
        for one in served:
            if replace_alias and one.alias == alias and one.model != adapter.model:
                await self._sampler.unload_adapter(one.model)
        return proven

    async def unload(self, alias: str) -> tuple[ServedAdapter, ...]:
        """Unload everything that `alias` stands for. Raises UnknownNameError."""
        found = await self._named(alias)
        for one in found:
            await self._sampler.unload_adapter(one.model)
        return found

    async def verify(self, alias: str, *, proof: Proof = "effect") -> ProvenAdapter:
        """That its folder still has the content that was loaded, and that it has an effect.

        Raises AdapterError, UnknownNameError.
        """
        *_, adapter = await self._named(alias)  # the one that was loaded last
        if not adapter.digest:
            raise AdapterError(
                f"it is not known which content {adapter.model} was loaded from",
                why="it was not loaded from here: then its name would end in its digest",
                fix="load it with `enginehouse adapters load`",
            )
        folder = _here(adapter.path)
        if folder is None:
            raise AdapterError(
                f"the folder of {adapter.model} is not on this machine",
                why=f"the server says that it is {adapter.path}",
                fix="verify it where the server runs",
            )
        stored = await asyncio.to_thread(AdapterStore(self._layout).add, folder)
        if not stored.digest.startswith(adapter.digest):
            raise AdapterError(
                f"{adapter.path} no longer has the content that {adapter.model} was loaded from",
                why=f"its digest is {stored.digest[:12]} now",
                fix="load it again",
            )
        base, *_ = await served_models(self._running.server, self._running.engine)
        return await self._proven(adapter, base, stored.info, proof=proof)

    async def _proven(
        self, adapter: ServedAdapter, base: ServedModel, info: PeftFolder, *, proof: Proof
    ) -> ProvenAdapter:
        effect = None
        if proof != "none" and self._tells_logprobs:
            effect = await prove_effect(
                self._sampler, model=adapter.model, base_model=base.id, info=info
            )
        parity = await self._parity(adapter, base.root) if proof == "peft" else None
        return ProvenAdapter(adapter=adapter, effect=effect, parity=parity)

    @property
    def _tells_logprobs(self) -> bool:
        return Capability.PROMPT_LOGPROBS in self._sampler.capabilities.supports

    async def _named(self, alias: str) -> tuple[ServedAdapter, ...]:
        served = await self.list()
        found = tuple(one for one in served if alias in (one.alias, one.model))
        if not found:
            raise UnknownNameError("adapter", alias, [one.alias for one in served])
        return found

    async def _parity(self, adapter: ServedAdapter, root: str | None) -> TokenParity:
        checkpoint, folder = _here(root), _here(adapter.path)
        if checkpoint is None or folder is None:
            raise AdapterError(
                f"{adapter.model} cannot be compared with PEFT's",
                why=f"its folder, or the base model's, {root}, is not on this machine",
                fix="compare where the server runs",
            )
        return await score_with_peft(
            self._sampler,
            server=self._running.server,
            model=adapter.model,
            checkpoint=checkpoint,
            adapter=folder,
            layout=self._layout,
            notify=self._notify,
        )


def _here(path: str | None) -> Path | None:
    """A folder that a server names, if it is one on this machine."""
    return Path(path) if path is not None and Path(path).is_dir() else None
