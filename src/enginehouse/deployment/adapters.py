"""The adapters of a running server: load, list, unload, verify.

The server's own list is all that is known of them: ALIAS@DIGEST, and the folder in our store.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal

import msgspec

from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.errors import AdapterError, EnginehouseError, UnknownNameError
from enginehouse.core.sampler import Capability
from enginehouse.deployment.reference_scores import score_with_peft
from enginehouse.deployment.running_servers import find_running, largest_rank
from enginehouse.deployment.samplers import make_sampler
from enginehouse.dialects.base import require
from enginehouse.engines.base import Engine, ServedEngine
from enginehouse.runtime.context import Context
from enginehouse.servers.endpoint import Server
from enginehouse.statistics.parity import TokenParity
from enginehouse.weights.loading import load_adapter
from enginehouse.weights.peft_folder import PeftFolder, checkpoint_shapes, read_peft_folder
from enginehouse.weights.pool import alias_of, name_of, require_alias
from enginehouse.weights.proof import Effect, prove_effect
from enginehouse.weights.served_models import ServedModel, served_models
from enginehouse.weights.store import AdapterStore

Proof = Literal["none", "effect", "peft"]


class ServedAdapter(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter that a server has. Requests name `model`.

    `digest` is that of its content, or the first 12 digits; empty if another program loaded it.
    """

    alias: str
    model: str
    digest: str
    path: str | None


class ProvenAdapter(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter, its proven effect, and how far it is from PEFT's own values."""

    adapter: ServedAdapter
    effect: Effect | None
    parity: TokenParity | None


@asynccontextmanager
async def adapters_of(server: str, context: Context) -> AsyncIterator[Adapters]:
    """Those of the server with the name or address `server`.

    Raises UnknownNameError, and WireError for a server that cannot be used.
    """
    running = await find_running(server, layout=context.layout)
    async with adapters_on(running.server, running.engine, context) as adapters:
        yield adapters


async def add_adapter(
    server: Server, engine: Engine, folder: Path, context: Context, *, alias: str | None = None
) -> ServedAdapter:
    """Load the adapter in `folder`, and prove it; others with its alias stay.

    `alias` None is the folder's own name. An adapter that was never trained has no effect, and is
    loaded nevertheless. Raises UnsupportedError for an engine without adapters, AdapterError.
    """
    info = await asyncio.to_thread(read_peft_folder, folder)
    if info.is_zero:
        context.notify(f"{folder} changes nothing: it has not been trained")
    async with adapters_on(server, engine, context) as adapters:
        loaded = await adapters.load(
            alias or alias_of(folder),
            folder,
            proof="none" if info.is_zero else "effect",
            replace_alias=False,
        )
    return loaded.adapter


@asynccontextmanager
async def adapters_on(server: Server, engine: Engine, context: Context) -> AsyncIterator[Adapters]:
    """Those of a known server. Raises UnsupportedError for an engine without adapters."""
    require(engine.capabilities(server.version), Capability.ADAPTERS, "LoRA adapters")
    assert isinstance(engine, ServedEngine), "only served engines take adapters"
    # one request at a time: together, the requests of a proof would kill some servers
    async with make_sampler(server, engine, concurrency=1) as sampler:
        yield Adapters(server, engine, sampler, context)


class Adapters:
    """The adapters of one server: list, load, unload, verify."""

    def __init__(
        self, server: Server, engine: ServedEngine, sampler: HTTPSampler, context: Context
    ) -> None:
        self._server = server
        self._engine = engine
        self._sampler = sampler
        self._context = context

    async def list(self) -> tuple[ServedAdapter, ...]:
        """Those that the server has, no matter who loaded them."""
        return _adapters_in(await served_models(self._server, self._engine))

    async def load(
        self, alias: str, folder: Path, *, proof: Proof = "effect", replace_alias: bool = True
    ) -> ProvenAdapter:
        """Check and copy the adapter in `folder`, load it, prove it.

        Then others with the same alias are unloaded, unless `replace_alias` is false; requests in
        flight for them are answered. Raises AdapterError, with the server as it was.
        """
        require_alias(alias)
        max_rank = largest_rank(self._server, layout=self._context.layout)
        models = await served_models(self._server, self._engine)
        base, served = models[0], _adapters_in(models)
        root = _here(base.root)
        shapes = await asyncio.to_thread(checkpoint_shapes, root) if root else None
        stored = await asyncio.to_thread(
            AdapterStore(self._context.layout).add,
            folder,
            base=shapes or None,
            max_rank=max_rank,
        )
        name = name_of(alias, stored.digest)
        await load_adapter(self._sampler, name, path=str(stored.path))
        adapter = ServedAdapter(
            alias=alias,
            model=self._sampler.adapter_model(name),
            digest=stored.digest,
            path=str(stored.path),
        )
        try:
            proven = await self._proven(adapter, base, stored.info, proof=proof)
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
        named = _named(alias, await served_models(self._server, self._engine))
        for adapter in named:
            await self._sampler.unload_adapter(adapter.model)
        return named

    async def verify(self, alias: str, *, proof: Proof = "effect") -> ProvenAdapter:
        """Check that its folder still has the content that was loaded, and that it has an effect.

        Raises AdapterError, UnknownNameError.
        """
        models = await served_models(self._server, self._engine)
        *_, adapter = _named(alias, models)  # the one that was loaded last
        if not adapter.digest:
            raise AdapterError(
                f"the content that {adapter.model} was loaded from is not known",
                why="it was not loaded by enginehouse, or its name would end in its digest",
                fix="load it with `enginehouse adapters load`",
            )
        folder = _here(adapter.path)
        if folder is None:
            raise AdapterError(
                f"the folder of {adapter.model} is not on this machine",
                why=f"the server says that it is {adapter.path}",
                fix="verify it where the server runs",
            )
        stored = await asyncio.to_thread(AdapterStore(self._context.layout).add, folder)
        if not stored.digest.startswith(adapter.digest):
            raise AdapterError(
                f"{adapter.path} no longer has the content that {adapter.model} was loaded from",
                why=f"its digest is {stored.digest[:12]} now",
                fix="load it again",
            )
        return await self._proven(adapter, models[0], stored.info, proof=proof)

    async def _proven(
        self, adapter: ServedAdapter, base: ServedModel, info: PeftFolder, *, proof: Proof
    ) -> ProvenAdapter:
        effect = None
        if proof != "none" and Capability.PROMPT_LOGPROBS in self._sampler.capabilities.supports:
            effect = await prove_effect(
                self._sampler, model=adapter.model, base_model=base.id, info=info
            )
        parity = await self._parity(adapter, base.root) if proof == "peft" else None
        return ProvenAdapter(adapter=adapter, effect=effect, parity=parity)

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
            server=self._server,
            model=adapter.model,
            checkpoint=checkpoint,
            adapter=folder,
            context=self._context,
        )


def _adapters_in(models: Sequence[ServedModel]) -> tuple[ServedAdapter, ...]:
    return tuple(
        ServedAdapter(
            alias=model.id.partition("@")[0],
            model=model.id,
            digest=model.id.partition("@")[2],
            path=model.root,
        )
        for model in models
        if model.parent is not None
    )


def _named(alias: str, models: Sequence[ServedModel]) -> tuple[ServedAdapter, ...]:
    served = _adapters_in(models)
    named = tuple(adapter for adapter in served if alias in (adapter.alias, adapter.model))
    if not named:
        raise UnknownNameError("adapter", alias, [adapter.alias for adapter in served])
    return named


def _here(path: str | None) -> Path | None:
    """A folder that a server names, if it is one on this machine."""
    return Path(path) if path is not None and Path(path).is_dir() else None
