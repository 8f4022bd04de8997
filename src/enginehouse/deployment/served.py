"""A deployment on a server of our own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from enginehouse.client.sampler import HTTPSampler
from enginehouse.client.stack import ServerLayers
from enginehouse.core.errors import AdapterError, WeightsError
from enginehouse.core.sampler import Capability, Provenance
from enginehouse.deployment.base import Deployment, Incidents, Target
from enginehouse.deployment.compute_type import type_in_command
from enginehouse.deployment.preparation import Prepared
from enginehouse.deployment.samplers import (
    exclusive_requests,
    make_sampler,
    say_bound,
    separated_scores,
)
from enginehouse.deployment.supervision import Supervisor, supervised
from enginehouse.deployment.swapping import swapping
from enginehouse.engines.registry import engines_that
from enginehouse.runtime.context import Context
from enginehouse.servers.endpoint import Server
from enginehouse.servers.server import OwnedServer, start_server
from enginehouse.weights.peft_folder import checkpoint_shapes, read_peft_folder
from enginehouse.weights.pool import AdapterPool, alias_of
from enginehouse.weights.store import AdapterStore, UncopiedAdapters
from enginehouse.weights.swap import WeightSwapper


@asynccontextmanager
async def served_deployment(
    prepared: Prepared,
    context: Context,
    *,
    concurrency: int | None,
    cpus: frozenset[int] | None = None,
) -> AsyncIterator[ServedDeployment]:
    """Start the prepared server, supervise it, and stop it when the block ends.

    Its processes run on `cpus` only, if those are given.
    """
    plan, incidents = prepared.plan, Incidents()
    async with (
        start_server(prepared.server(context, cpus=cpus)) as owned,
        supervised(
            owned,
            patience=plan.progress_timeout,
            max_restarts=plan.max_restarts,
            on_incident=incidents.report,
        ) as supervisor,
        swapping(owned, supervisor=supervisor, alone=True) as swapper,
        AsyncExitStack() as stack,
    ):
        deployment = ServedDeployment(
            context=context,
            prepared=prepared,
            owned=owned,
            supervisor=supervisor,
            weights=swapper,
            layers=ServerLayers(
                exclusive=exclusive_requests(prepared.quirks()),
                separated=separated_scores(prepared.quirks()),
                gate=swapper.gate if swapper else None,
                redelivery=supervisor.redelivery,
            ),
            concurrency=concurrency,
            stack=stack,
        )
        deployment.incidents = incidents
        await deployment.begin()
        yield deployment


@dataclass(kw_only=True, eq=False)
class ServedDeployment(Deployment):
    """Its server restarts by itself, at the same address, and all its samplers share `layers`.

    `stack` closes what is opened later: the samplers, before the server is stopped.
    """

    context: Context
    prepared: Prepared
    owned: OwnedServer
    supervisor: Supervisor
    weights: WeightSwapper | None
    layers: ServerLayers
    concurrency: int | None
    stack: AsyncExitStack
    pool: AdapterPool | None = None

    async def begin(self) -> None:
        """Open the sampler of the plan's model, and of its adapter if it has one."""
        self.engine, self.model = self.prepared.engine, self.prepared.model
        self.answer_options = self.prepared.answer_options()
        self._turn = asyncio.Lock()  # held while targets that open at once share a step
        sampler = await self.stack.enter_async_context(
            self._sampler(self.server.models[0], self.concurrency)
        )
        say_bound(sampler, self.context.notify)
        # past the layers in which requests wait for a restoration
        self._direct = await self.stack.enter_async_context(
            make_sampler(self.server, self.engine, concurrency=1)
        )
        provenance = _provenance(self.server, self.prepared)
        self.default = self._base = Target(deployment=self, sampler=sampler, provenance=provenance)
        if (adapter := self.prepared.plan.adapter) is not None:
            self.default = await self.stack.enter_async_context(self._open_adapter(adapter))
            self.context.notify(f"adapter: {adapter}, loaded as {self.default.provenance.model}")

    @property
    def server(self) -> Server:
        """As it is now."""
        return self.owned.server

    @asynccontextmanager
    async def _open_base(self) -> AsyncIterator[Target]:
        await self._restore_own_weights()
        yield self._base

    @asynccontextmanager
    async def _open_adapter(self, folder: Path) -> AsyncIterator[Target]:
        await self._restore_own_weights()
        if not self.prepared.options.enable_lora:
            raise AdapterError(
                f"{folder} is an adapter, and the server was started without LoRA",
                fix="give --enable-lora",
            )
        pool = await self._adapter_pool()
        supports = self.engine.capabilities(self.server.version).supports
        info = await asyncio.to_thread(read_peft_folder, folder)
        prove = Capability.PROMPT_LOGPROBS in supports and not info.is_zero
        async with (
            pool.kept(alias_of(folder), folder, prove=prove) as loaded,
            self._sampler(loaded.model, self.concurrency) as sampler,
        ):
            yield Target(
                deployment=self,
                sampler=sampler,
                provenance=msgspec.structs.replace(
                    self._base.provenance, model=loaded.model, adapter_digest=loaded.stored.digest
                ),
                adapter=loaded.stored.path,
            )

    @asynccontextmanager
    async def _open_checkpoint(self, folder: Path) -> AsyncIterator[Target]:
        swapper = self.weights
        if swapper is None:
            able = engines_that(lambda other: other.wire.weights is not None)
            raise WeightsError(
                f"the weights of {self.server.name} cannot be swapped while it runs",
                fix="serve the checkpoint by itself, or with enable_weight_swap and an engine that "
                f"swaps weights ({', '.join(able)})",
                kind="unsupported",
            )
        # even if it has them: a folder that is named again may hold something else by now
        await swapper.swap(folder)
        provenance = msgspec.structs.replace(
            self._base.provenance, model=str(folder), weights_digest=swapper.current.digest
        )
        yield Target(deployment=self, sampler=self._base.sampler, provenance=provenance)

    @asynccontextmanager
    async def _open_model(self, model: str) -> AsyncIterator[Target]:
        await self._restore_own_weights()
        provenance = msgspec.structs.replace(self._base.provenance, model=model)
        if model not in self.server.models:
            reason = "it was named, and loaded by somebody else"
            unknown = {**provenance.unknown, "adapter_digest": reason}
            provenance = msgspec.structs.replace(provenance, unknown=unknown)
        async with self._sampler(model, self.concurrency) as sampler:
            yield Target(deployment=self, sampler=sampler, provenance=provenance)

    async def _restore_own_weights(self) -> None:
        """Bring back the weights of the plan's model if a checkpoint has replaced them."""
        if (swapper := self.weights) is not None:
            assert self.model is not None
            own = Path(self.model.path)
            async with self._turn:
                if swapper.current.path != own:
                    await swapper.swap(own)

    async def _adapter_pool(self) -> AdapterPool:
        """The server's adapters; made when the first one is needed."""
        async with self._turn:
            if self.pool is not None:
                return self.pool
            store = AdapterStore(self.context.layout)
            self.pool = await self.stack.enter_async_context(self.adapters(store))
            return self.pool

    @asynccontextmanager
    async def adapters(
        self,
        store: AdapterStore | UncopiedAdapters,
        *,
        max_loras: int | None = None,
        for_many: bool = False,
    ) -> AsyncIterator[AdapterPool]:
        """See Deployment."""
        options, model = self.prepared.options, self.model
        assert model is not None
        # its own connections: loading and proving do not wait for a place among the requests
        async with self._sampler(self.server.models[0], None) as sampler:
            pool = AdapterPool(
                sampler,
                max_loras=options.max_loras or max_loras or 1,
                store=store,
                base=await asyncio.to_thread(checkpoint_shapes, Path(model.path)) or None,
                max_rank=options.max_lora_rank,
                for_many=for_many,
            )
            restoration = self.after_restart(pool.restore)
            try:
                yield pool
            finally:
                self.supervisor.restorations.remove(restoration)

    def after_restart(
        self, restore: Callable[[HTTPSampler], Awaitable[object]]
    ) -> Callable[[], Awaitable[object]]:
        """Have `restore` tell a restarted server again what it had been told.

        It is given a sampler whose requests do not wait for it, as others do. Returns the entry in
        the supervisor's `restorations`.
        """
        restoration = partial(restore, self._direct)
        self.supervisor.restorations.append(restoration)
        return restoration

    def _sampler(self, model: str, concurrency: int | None) -> HTTPSampler:
        return make_sampler(
            self.server,
            self.engine,
            concurrency=concurrency,
            model=model,
            shared=self.layers,
        )


def _provenance(server: Server, prepared: Prepared) -> Provenance:
    model = prepared.model
    return Provenance(
        engine=prepared.environment.engine,
        engine_version=prepared.environment.version,
        engine_arguments=server.command,
        environment=prepared.environment.key or str(prepared.environment.executable),
        model=model.reference,
        weights_digest=model.weights_digest,
        chat_template_digest=model.chat_template_digest,
        base_url=server.base_url,
        revision=model.revision,
        dtype=type_in_command(server.engine, server.command or ()),
        dtype_reason=prepared.compute_type.reason if prepared.compute_type else None,
        unknown=model.unknown,
    )
