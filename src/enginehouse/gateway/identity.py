"""Who answers a gateway's requests, as exactly as it is known."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec

from enginehouse.client.transport import Timeouts, Transport, open_transport
from enginehouse.client.wire import WeightEndpoints
from enginehouse.core.errors import EnginehouseError
from enginehouse.deployment.base import Deployment
from enginehouse.engines.base import ServedEngine
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout
from enginehouse.weights.checkpoint import digest_of
from enginehouse.weights.replacement import PENDING
from enginehouse.weights.served_models import served_models

_PATIENCE = Timeouts(total=10.0)  # for a server to say what its weights are called


class Identity(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What decides an answer besides the request and the adapter.

    `weights` is the digest of the weights that answer. Where that is not known, `model` is the name
    that the server gives its model, `server` its address if it is not ours, `root` the digest of
    the folder that it says it was started with, and `named` what it calls its weights. `options`
    are those that it was started with and that may change answers.
    """

    weights: str | None = None
    chat_template: str | None = None
    engine: str | None = None
    engine_version: str | None = None
    dtype: str | None = None
    options: tuple[str, ...] = ()
    server: str | None = None
    model: str | None = None
    root: str | None = None
    named: str | None = None

    @property
    def digest(self) -> str:
        """A short digest of it all."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:32]


@asynccontextmanager
async def identification_of(
    deployment: Deployment, context: Context
) -> AsyncIterator[Identification]:
    """Tells who answers; `context.notify` hears of weights whose digest is not known."""
    provenance = deployment.provenance
    identity = Identity(
        chat_template=provenance.chat_template_digest,
        engine=provenance.engine,
        engine_version=provenance.engine_version,
        dtype=provenance.dtype,
        options=deployment.answer_options,
    )
    if deployment.weights_digest is not None:
        yield Identification(deployment, identity, known=True)
        return
    engine, server = deployment.engine, deployment.server
    model = deployment.sampler.model
    address = None if server.owned else provenance.base_url
    identity = msgspec.structs.replace(identity, server=address, model=model)
    signs = f"its model's name, its {'options' if server.owned else 'address'} and its version"
    async with AsyncExitStack() as stack:
        names: WeightsName | None = None
        if isinstance(engine, ServedEngine):
            root = await _root_digest(deployment, engine, context.layout)
            identity = msgspec.structs.replace(identity, root=root)
            if root is not None:
                signs += ", and the folder that it says it was started with"
            transport: Transport = await stack.enter_async_context(
                open_transport(
                    server.base_url,
                    api_key=server.api_key,
                    admin_key=server.admin_key,
                    timeouts=_PATIENCE,
                )
            )
            if engine.wire.weights is not None:
                names = WeightsName(transport, engine.wire.weights)
                stack.push_async_callback(names.close)
                if await names.ask() is None:
                    names = None
                else:
                    signs += ", and what it calls its weights"
        context.notify(
            f"the digest of the weights at {provenance.base_url} is not known: answers are "
            f"recorded under {signs}; use another folder when its weights change"
        )
        yield Identification(deployment, identity, known=False, names=names)


class Identification:
    """Says who answers, before a request is sent and after it was answered.

    `known`: by the digest of their weights. `names` asks a server that can change them.
    """

    def __init__(
        self,
        deployment: Deployment,
        identity: Identity,
        *,
        known: bool,
        names: WeightsName | None = None,
    ) -> None:
        self._deployment = deployment
        self._identity = identity
        self._known = known
        self._names = names

    async def now(self) -> Identity | None:
        """Who would answer a request that is sent now; None while that is not certain."""
        digest = self._deployment.weights_digest
        if digest is not None:
            return msgspec.structs.replace(self._identity, weights=digest)
        if self._known:
            return None  # of several servers, some have other weights
        if self._names is None:
            return self._identity
        named = await self._names.ask()
        if named is None or named.startswith(PENDING):
            return None
        return msgspec.structs.replace(self._identity, named=named)

    async def after(self, before: Identity, *, weights_digest: str | None) -> Identity | None:
        """Who has answered a request that was sent when it was `before`; None if not certain.

        `weights_digest` is what the stack of request layers said of the reply.
        """
        if weights_digest is not None:
            return msgspec.structs.replace(before, weights=weights_digest)
        return before if await self.now() == before else None


class WeightsName:
    """Asks a server what it calls its weights: once for all who wait for the next reply."""

    def __init__(self, transport: Transport, endpoints: WeightEndpoints) -> None:
        self._transport = transport
        self._endpoints = endpoints
        self._running: asyncio.Task[str | None] | None = None
        self._next: asyncio.Task[str | None] | None = None

    async def ask(self) -> str | None:
        """The name, asked for after this was called; None if the server does not say."""
        if self._next is None:
            self._next = asyncio.create_task(self._after(self._running))
        return await asyncio.shield(self._next)

    async def close(self) -> None:
        """Ask no more. Idempotent."""
        asking = [task for task in (self._running, self._next) if task is not None]
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    async def _after(self, running: asyncio.Task[str | None] | None) -> str | None:
        if running is not None:
            await asyncio.wait([running])
        self._running, self._next = self._next, None
        try:
            reply = await self._transport.send(self._endpoints.ask_name)
            return self._endpoints.read_name(reply.body) if reply.status == 200 else None
        except EnginehouseError:
            return None


async def _root_digest(deployment: Deployment, engine: ServedEngine, layout: Layout) -> str | None:
    """The digest of the folder that the server says it serves, where that is on this machine."""
    try:
        (base, *_) = await served_models(deployment.server, engine)
        return await asyncio.to_thread(_digest_if_here, base.root, layout)
    except EnginehouseError:
        return None


def _digest_if_here(root: str | None, layout: Layout) -> str | None:
    if root is None or not Path(root).is_dir():
        return None
    return digest_of(Path(root), layout=layout)
