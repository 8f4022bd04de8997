"""A deployment on several servers that answer alike, of which any may be lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

import msgspec

from enginehouse.client.sampler import HTTPSampler
from enginehouse.client.spread import Instance, Instances
from enginehouse.core.errors import ServerGoneError, UnknownNameError, UnsupportedError
from enginehouse.core.sampler import Provenance
from enginehouse.deployment.base import Deployment, Incidents, Target
from enginehouse.deployment.loadable_adapters import LoadableAdapters, ServerAdapters
from enginehouse.deployment.preparation import Prepared
from enginehouse.deployment.samplers import make_sampler, say_bound
from enginehouse.deployment.served import ServedDeployment, served_deployment
from enginehouse.deployment.shares import Share, divide_machine
from enginehouse.engines.base import Engine
from enginehouse.runtime.context import Context
from enginehouse.servers.endpoint import Server
from enginehouse.weights.store import AdapterStore, UncopiedAdapters


@asynccontextmanager
async def several_served(
    prepared: Prepared, context: Context, *, instances: int, concurrency: int | None
) -> AsyncIterator[Deployment]:
    """Start so many of the prepared server, each with its share of this machine.

    Each has a supervisor of its own. Raises ConfigurationError, and what one server's start raises;
    then the others are stopped, too.
    """
    group = SeveralDeployment(prepared.engine, context, concurrency=concurrency)
    async with own_parts(prepared, context, instances=instances) as parts:
        group.model, group.answer_options = prepared.model, prepared.answer_options()
        for part in parts:
            await group.join(part)
        async with group.open_default(prepared.plan.adapter) as group.default:
            say_bound(group.sampler, context.notify)
            yield group


@asynccontextmanager
async def own_parts(
    prepared: Prepared, context: Context, *, instances: int
) -> AsyncIterator[Sequence[Part]]:
    """So many of the prepared server, ready for the length of the block."""
    shares = await asyncio.to_thread(divide_machine, prepared, instances, notify=context.notify)
    parts = [Part() for _ in shares]
    try:
        await _all_or_none(
            [_start(part, share, context) for part, share in zip(parts, shares, strict=True)]
        )
        yield parts
    finally:
        await together([part.close() for part in parts])


async def together(steps: Sequence[Coroutine[object, object, None]]) -> None:
    """Take the steps at the same time, each to its end; then raise the first error."""
    outcomes = await asyncio.gather(*steps, return_exceptions=True)
    for outcome in outcomes:
        if outcome is not None:
            raise outcome


async def _start(part: Part, share: Share, context: Context) -> None:
    prepared = replace(
        share.prepared, plan=share.prepared.plan.model_copy(update={"adapter": None})
    )
    deployment: ServedDeployment = await part.stack.enter_async_context(
        served_deployment(prepared, context, concurrency=1, cpus=share.cpus)
    )
    server = deployment.server
    part.deployment = deployment
    part.instance = Instance(
        server.base_url,
        redelivery=deployment.supervisor.redelivery,
        layers=deployment.layers,
        models=server.models,
        api_key=server.api_key,
        admin_key=server.admin_key,
    )


async def _all_or_none(starts: Sequence[Coroutine[object, object, None]]) -> None:
    """Await them all; the first error cancels the others, and is raised when they have ended."""
    tasks = [asyncio.create_task(start) for start in starts]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(eq=False)
class Part:
    """One of the servers: a deployment of its own, what is open on it, and its place in the group.

    `stack` closes the deployment and whatever belongs to it.
    """

    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    _targets: dict[_Everywhere, AsyncExitStack] = field(default_factory=dict)
    deployment: Deployment = field(init=False)
    instance: Instance = field(init=False)

    async def open(self, wanted: _Everywhere) -> Target:
        """Have it answer as what is wanted. Raises as `Deployment.target` does."""
        async with AsyncExitStack() as stack:
            target = await stack.enter_async_context(self.deployment.target(wanted.folder))
            name = target.sampler.model
            self.instance.models[name] += 1
            stack.callback(self.instance.models.subtract, [name])
            self._targets[wanted] = stack.pop_all()
        return target

    async def shut(self, wanted: _Everywhere) -> None:
        """The end of `open`. Idempotent."""
        stack = self._targets.pop(wanted, None)
        if stack is not None:
            await stack.aclose()

    async def close(self) -> None:
        """Close everything that is open on it, and its deployment. Idempotent."""
        try:
            for wanted in tuple(self._targets):
                await self.shut(wanted)
        finally:
            await self.stack.aclose()


@dataclass(frozen=True, eq=False)
class _Everywhere:
    """A target that is open on every server; None is the plan's model."""

    folder: Path | None


class SeveralDeployment(Deployment):
    """Its sampler spreads requests over `instances`, whatever happens to any one of them.

    A target is opened on every server, and on those that join while it is open before they get
    requests. Swapping weights by hand is for one server: `weights` is None.
    """

    announced_weights: str | None = None
    """The digest that servers which are not ours say they were started with."""

    def __init__(self, engine: Engine, context: Context, *, concurrency: int | None) -> None:
        self.engine = engine
        self.incidents = Incidents()
        self.instances = Instances()
        self._context = context
        self._concurrency = concurrency
        self._parts: list[Part] = []
        self._open: list[_Everywhere] = []
        self._turn = asyncio.Lock()  # held while a server joins, or a target is opened on them all
        self._server: Server | None = None

    @property
    def server(self) -> Server:
        """One of those that work, or else the one that was there last."""
        working = [part for part in self._parts if part.instance.redelivery.is_open]
        for part in (*working, *self._parts)[:1]:
            self._server = part.deployment.server
        assert self._server is not None, "not known until a server has joined"
        return self._server

    @property
    def weights_digest(self) -> str | None:
        """That of the weights which answer on every server; None if it is not known or differs."""
        announced = self.announced_weights
        digests = {part.deployment.weights_digest or announced for part in self._parts}
        return digests.pop() if len(digests) == 1 else None

    async def join(self, part: Part) -> None:
        """Have it answer as everything that is open, then let requests go to it.

        Raises as `Deployment.target` does; then it has not joined, and is still to be closed.
        """
        async with self._turn:
            for wanted in self._open:
                await part.open(wanted)
            part.stack.enter_context(part.deployment.incidents.subscribe(self.incidents.report))
            self._parts.append(part)
            self._server = self._server or part.deployment.server
            self.instances.add(part.instance)

    def leave(self, part: Part) -> None:
        """Let no more requests go to it. Idempotent."""
        if part in self._parts:
            self._parts.remove(part)
            self.instances.remove(part.instance)

    def open_default(self, adapter: Path | None) -> AbstractAsyncContextManager[Target]:
        """What the plan names: its model, or an adapter of it."""
        if adapter is not None:
            return self._open_everywhere(adapter)
        return self._spread(self._able_parts()[0].deployment.default)

    @asynccontextmanager
    async def _spread(self, one: Target) -> AsyncIterator[Target]:
        """A server's target, with a sampler that asks them all."""
        async with self._sampler(one.sampler.model) as sampler:
            provenance = self._provenance(one.provenance)
            yield replace(one, deployment=self, sampler=sampler, provenance=provenance)

    @asynccontextmanager
    async def _open_everywhere(self, folder: Path | None) -> AsyncIterator[Target]:
        wanted = _Everywhere(folder)
        try:
            async with self._turn:
                opening = [part.open(wanted) for part in self._able_parts()]
                outcomes = await asyncio.gather(*opening, return_exceptions=True)
                for outcome in outcomes:
                    if isinstance(outcome, BaseException):
                        raise outcome
                targets = [one for one in outcomes if isinstance(one, Target)]
                self._open.append(wanted)
            async with self._spread(targets[0]) as target:
                yield target
        finally:
            if wanted in self._open:
                self._open.remove(wanted)
            await together([part.shut(wanted) for part in self._parts])

    def _open_base(self) -> AbstractAsyncContextManager[Target]:
        return self._open_everywhere(None)

    def _open_adapter(self, folder: Path) -> AbstractAsyncContextManager[Target]:
        return self._open_everywhere(folder)

    def _open_checkpoint(self, folder: Path) -> AbstractAsyncContextManager[Target]:
        return self._open_everywhere(folder)

    @asynccontextmanager
    async def _open_model(self, model: str) -> AsyncIterator[Target]:
        """Requests go to those servers that list it now."""
        parts = self._able_parts()
        listed = [await part.deployment.sampler.models() for part in parts]
        holders = [part for part, names in zip(parts, listed, strict=True) if model in names]
        if not holders:
            known = {name for names in listed for name in names}
            raise UnknownNameError("model", model, sorted(known))
        for part in holders:
            part.instance.models[model] += 1
        try:
            async with holders[0].deployment.target_named(model) as first:
                provenance = self._provenance(first.provenance)
            async with self._sampler(model) as sampler:
                yield Target(deployment=self, sampler=sampler, provenance=provenance)
        finally:
            for part in holders:
                part.instance.models[model] -= 1

    def adapters(self, *_: object, **__: object) -> NoReturn:
        """Refused: UnsupportedError."""
        raise UnsupportedError(
            "on-demand adapters need a single server",
            why="several would each have different adapters loaded",
            fix="open each adapter as a target, which all servers load; or use one server, with "
            "data_parallel_size for more GPUs",
        )

    @asynccontextmanager
    async def loadable_adapters(
        self, store: AdapterStore | UncopiedAdapters, *, max_loras: int | None = None
    ) -> AsyncIterator[LoadableAdapters]:
        """See Deployment. Servers that join later do not have them, and are not asked for them."""
        async with AsyncExitStack() as stack:
            servers = [
                ServerAdapters(
                    pool=await stack.enter_async_context(
                        part.deployment.adapters(store, max_loras=max_loras, for_many=True)
                    ),
                    instance=part.instance,
                )
                for part in self._able_parts()
            ]
            yield LoadableAdapters(servers)

    def _able_parts(self) -> list[Part]:
        """Those that have not been given up. Raises the last one's error if all have."""
        errors = [part.instance.redelivery.error for part in self._parts]
        able = [part for part, error in zip(self._parts, errors, strict=True) if error is None]
        if not able:
            raise (
                errors[-1]
                if errors and errors[-1]
                else ServerGoneError("no server is left to answer", fix="start one, then resume")
            )
        return able

    def _provenance(self, one: Provenance) -> Provenance:
        """That of one server, with the addresses of all."""
        addresses = [part.deployment.server.base_url for part in self._parts]
        return msgspec.structs.replace(one, base_url=", ".join(addresses))

    def _sampler(self, model: str) -> HTTPSampler:
        return make_sampler(
            self.server,
            self.engine,
            concurrency=self._concurrency,
            model=model,
            instances=self.instances,
        )
