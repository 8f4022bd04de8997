"""The adapters of a server that runs already: load, list, unload, verify.

What is known of them is what the server lists: ALIAS@DIGEST, and the folder in our store.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import msgspec

from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.errors import AdapterError, UnknownNameError
from enginehouse.core.sampler import Capability
from enginehouse.dialects.base import require
from enginehouse.engines.base import Engine, ServedEngine
from enginehouse.launch.parity import score_with_peft
from enginehouse.launch.running_server import RunningServer, find_running, served_models
from enginehouse.launch.serving import Notify, make_sampler
from enginehouse.servers.endpoint import Server
from enginehouse.statistics.parity import TokenParity
from enginehouse.store.layout import Layout
from enginehouse.weights.peft_folder import checkpoint_shapes, read_peft_folder
from enginehouse.weights.pool import AdapterPool, alias_of
from enginehouse.weights.proof import Effect, prove_effect
from enginehouse.weights.store import AdapterStore

Proof = Literal["none", "effect", "peft"]


class ServedAdapter(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter that a server has. Requests name `model`; `digest` is the content's first 12."""

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
    async with _its(running.server, running.engine, layout=layout, notify=notify) as its:
        yield its


async def lend(
    server: Server, engine: Engine, *, folder: Path, layout: Layout, notify: Notify
) -> Server:
    """The server with the adapter in `folder` loaded and proven, as the first of its models.

    One that was never trained has no effect, and is lent nevertheless. Raises UnsupportedError for
    an engine that takes none, AdapterError.
    """
    info = await asyncio.to_thread(read_peft_folder, folder)
    if info.is_zero:
        notify(f"{folder} changes nothing: it has not been trained")
    async with _its(server, engine, layout=layout, notify=notify) as its:
        loaded = await its.load(
            alias_of(folder),
            folder,
            proof="none" if info.is_zero else "effect",
            replace_alias=False,
        )
    name = loaded.adapter.model
    others = (model for model in server.models if model != name)
    return replace(server, models=(name, *others))


async def take_back(server: Server, engine: Engine, *, layout: Layout, notify: Notify) -> None:
    """Unload what was lent: the first of the server's models."""
    async with _its(server, engine, layout=layout, notify=notify) as its:
        await its.unload(server.models[0])


@asynccontextmanager
async def _its(
    server: Server, engine: Engine, *, layout: Layout, notify: Notify
) -> AsyncIterator[Adapters]:
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
        _, *others = await served_models(self._running.server, self._running.engine)
        return tuple(
            ServedAdapter(
                alias=model.id.partition("@")[0],
                model=model.id,
                digest=model.id.partition("@")[2],
                path=model.root,
            )
            for model in others
        )

    async def load(
        self, alias: str, folder: Path, *, proof: Proof = "effect", replace_alias: bool = True
    ) -> ProvenAdapter:
        """Check and copy the adapter in `folder`, load it, prove it.

        Others of the same alias are unloaded then, unless `replace_alias` is false; requests under
        way for them are answered. Raises AdapterError, with the server as it was.
        """
        before = [one for one in await self.list() if one.alias == alias]
        base, *_ = await served_models(self._running.server, self._running.engine)
        root = _here(base.root)
        shapes = await asyncio.to_thread(checkpoint_shapes, root) if root else None
        pool = AdapterPool(
            [self._sampler], max_loras=1, store=AdapterStore(self._layout), base=shapes or None
        )
        loaded = await pool.load(alias, folder, prove=proof != "none" and self._tells_logprobs)
        adapter = ServedAdapter(
            alias=alias,
            model=loaded.model,
            digest=loaded.stored.digest,
            path=str(loaded.stored.path),
        )
        parity = await self._parity(adapter, base.root) if proof == "peft" else None
        for one in before:
            if replace_alias and one.model != adapter.model:
                await self._sampler.unload_adapter(one.model)
        return ProvenAdapter(adapter=adapter, effect=loaded.effect, parity=parity)

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
        adapter = (await self._named(alias))[0]
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
        effect = None
        if proof != "none" and self._tells_logprobs:
            effect = await prove_effect(
                self._sampler, model=adapter.model, base_model=base.id, info=stored.info
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
            model=adapter.model,
            checkpoint=checkpoint,
            adapter=folder,
            layout=self._layout,
            notify=self._notify,
        )


def _here(path: str | None) -> Path | None:
    """A folder that a server names, if it is one on this machine."""
    return Path(path) if path is not None and Path(path).is_dir() else None
