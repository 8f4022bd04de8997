"""A deployment on the servers that are announced in a folder, which may come, go and die."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

from enginehouse.client.admission import Admission
from enginehouse.client.redelivery import Redelivery
from enginehouse.client.spread import Instance
from enginehouse.client.stack import ServerLayers
from enginehouse.core.errors import (
    ConfigurationError,
    EnginehouseError,
    ServerGoneError,
    UnsupportedError,
)
from enginehouse.core.incidents import Incident
from enginehouse.deployment.announcement import LOOK_EVERY, Announcement, read_announcements
from enginehouse.deployment.attached import attached_deployment
from enginehouse.deployment.base import Deployment
from enginehouse.deployment.configuration import AskConfig
from enginehouse.deployment.preparation import Prepared
from enginehouse.deployment.samplers import say_bound
from enginehouse.deployment.several import Part, SeveralDeployment, own_parts, together
from enginehouse.engines.base import Engine, ServedEngine
from enginehouse.runtime.context import Context
from enginehouse.servers.endpoint import Server
from enginehouse.servers.sessions import below, open_session

_PROBE = aiohttp.ClientTimeout(total=5.0)
_SILENCE = 30.0  # seconds without an answer from /health: a burst of requests delays it, too
_ENGINE_DEAD = 503


@asynccontextmanager
async def announced_deployment(
    plan: AskConfig,
    engine: Engine,
    context: Context,
    *,
    prepared: Prepared | None,
    concurrency: int | None,
    look_every: float = LOOK_EVERY,
) -> AsyncIterator[Deployment]:
    """Ask the servers that are announced in the plan's folder, from the first one on.

    With `prepared`, the plan's instances are started here as well, and are there from the start.
    The folder is looked into every `look_every` seconds.

    Others join when they are announced, and leave when their announcement is removed; one that dies
    leaves its requests to the others, and joins again when it answers. When none has answered for
    the plan's `progress_timeout`, requests fail with ServerGoneError. Raises UnsupportedError, and
    ServerGoneError if none is there within `start_timeout`.
    """
    if not isinstance(engine, ServedEngine):
        raise UnsupportedError(
            f"{engine.name} runs elsewhere, and its servers announce themselves nowhere",
            fix="leave addresses out",
        )
    group = SeveralDeployment(engine, context, concurrency=concurrency)
    members = _Members(plan, engine, context, group, look_every=look_every)
    async with AsyncExitStack() as stack:
        if prepared is not None:
            starting = own_parts(prepared, context, instances=plan.instances or 1)
            parts = await stack.enter_async_context(starting)
            group.model, group.answer_options = prepared.model, prepared.answer_options()
            for part in parts:
                await group.join(part)
            members.require_like(parts[0].deployment.server, prepared)
        watching = asyncio.create_task(members.watch())
        try:
            await members.first(watching)
            async with group.open_default(plan.adapter) as group.default:
                say_bound(group.sampler, context.notify)
                yield group
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await members.close()


class _Members:
    """Has servers join the group, and leave it."""

    def __init__(
        self,
        plan: AskConfig,
        engine: ServedEngine,
        context: Context,
        group: SeveralDeployment,
        *,
        look_every: float,
    ) -> None:
        assert plan.addresses is not None
        self._folder: Path = plan.addresses
        self._plan = plan
        self._engine = engine
        self._context = context
        self._group = group
        self._look_every = look_every
        self._model = plan.model
        self._like: Announcement | None = None  # the first one, which others must be like
        self._present: dict[Path, asyncio.Task[None]] = {}
        self._said: dict[Path, str] = {}
        self._joined = asyncio.Event()
        self._alone_since = time.monotonic()

    def require_like(self, server: Server, prepared: Prepared) -> None:
        """Have others join only if they serve what a server of our own does."""
        self._model = server.models[0]
        self._like = Announcement(
            url=server.base_url,
            models=server.models,
            engine=server.engine,
            version=server.version,
            weights_digest=prepared.model.weights_digest,
        )
        self._joined.set()

    async def first(self, watching: asyncio.Task[None]) -> None:
        """Wait until one has joined."""
        self._context.notify(f"waiting for the servers that are announced in {self._folder}")
        joined = asyncio.create_task(self._joined.wait())
        try:
            await asyncio.wait(
                {joined, watching},
                timeout=self._plan.start_timeout,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            joined.cancel()
        if watching.done():
            watching.result()
        if not self._joined.is_set():
            raise ServerGoneError(
                f"no server in {self._folder} answers",
                why="; ".join(self._said.values()) or "none is announced there",
                fix="start some with `enginehouse serve MODEL --announce FOLDER`, or raise "
                "start_timeout",
            )

    async def watch(self) -> None:
        """Look into the folder until cancelled.

        Raises ServerGoneError, as waiting requests do, when none has answered for too long, and
        ConfigurationError for a folder that cannot be read from the start.
        """
        try:
            while True:
                try:
                    present = await asyncio.to_thread(read_announcements, self._folder)
                except ConfigurationError as error:
                    if not self._joined.is_set():
                        raise
                    self._say(self._folder, f"{error.message}: {error.why}")
                else:
                    self._follow(present)
                self._require_company()
                await asyncio.sleep(self._look_every)
        except ServerGoneError as error:
            self._group.instances.close_for_good(error)
            raise

    def _follow(self, present: Mapping[Path, Announcement | ConfigurationError]) -> None:
        for file, one in present.items():
            known = self._present.get(file)
            if isinstance(one, ConfigurationError):
                self._say(file, f"{one.message}: {one.why}")
            elif known is None or known.done():
                self._present[file] = asyncio.create_task(self._membership(file, one))
        for file in self._said.keys() - present.keys():
            del self._said[file]

    def _require_company(self) -> None:
        if len(self._group.instances):
            self._alone_since = time.monotonic()
        elif (
            self._joined.is_set()
            and time.monotonic() - self._alone_since > self._plan.progress_timeout
        ):
            raise ServerGoneError(
                f"none of the servers announced in {self._folder} has answered for "
                f"{self._plan.progress_timeout:.0f} s",
                why="; ".join(self._said.values()) or "none is announced there any more",
                fix="start servers, then resume",
            )

    async def close(self) -> None:
        """Leave them all as they were."""
        for task in self._present.values():
            task.cancel()
        await asyncio.gather(*self._present.values(), return_exceptions=True)

    async def _membership(self, file: Path, one: Announcement) -> None:
        """From when a server answers until it is lost, or has left and answered everything."""
        part = Part()
        try:
            try:
                await self._admit(part, one)
            except EnginehouseError as error:
                self._say(file, f"{one.url} is not asked: {error.message}")
                return
            self._said.pop(file, None)
            self._joined.set()
            self._context.notify(f"{one.url} joined")
            lost = await self._until_over(part, file)
            self._group.leave(part)
            if lost is None:
                self._context.notify(f"{one.url} left, with everything answered")
                return
            in_flight = part.instance.redelivery.interrupt(lost)
            self._say(file, f"{one.url} was lost: {lost}")
            self._group.incidents.report(
                Incident(
                    moment=datetime.now(UTC),
                    kind="unreachable",
                    cause=f"{one.url}: {lost}",
                    evidence=None,
                    log=None,
                    in_flight=in_flight,
                    consequence="left to the other servers until it answers again",
                )
            )
        finally:
            self._group.leave(part)
            await together([part.close()])

    async def _admit(self, part: Part, one: Announcement) -> None:
        like = self._like or one
        model = self._model or like.models[0]
        if model not in one.models or one.weights_digest != like.weights_digest:
            raise ConfigurationError(
                f"it does not serve what {like.url} does",
                why=f"it serves {', '.join(one.models)}, with other weights",
                fix="announce servers of one model in one folder",
            )
        key = _read_key(one.api_key_file)
        changes: dict[str, Any] = {
            "url": one.url,
            "addresses": None,
            "adapter": None,
            "model": model,
        }
        if key is not None:
            changes["server"] = self._plan.server.model_copy(update={"api_key": key})
        plan = self._plan.model_copy(update=changes)
        part.deployment = await part.stack.enter_async_context(
            attached_deployment(
                plan,
                self._engine,
                Context(layout=self._context.layout),
                concurrency=1,
                admin_key=_read_key(one.key_file),
            )
        )
        server = part.deployment.server
        redelivery = Redelivery(admission=Admission(), patience=self._plan.progress_timeout)
        redelivery.resume()
        part.instance = Instance(
            server.base_url,
            redelivery=redelivery,
            layers=ServerLayers(redelivery=redelivery),
            models=[model],
            api_key=server.api_key,
            admin_key=server.admin_key,
        )
        self._group.announced_weights = one.weights_digest
        await self._group.join(part)
        self._like = like

    async def _until_over(self, part: Part, file: Path) -> str | None:
        """Why the server was lost; None once it has left and nothing is in flight there.

        It is lost at once if it refuses connections after a request has failed, and otherwise if
        it does so twice, says that its engine is dead, or is silent for a while.
        """
        redelivery = part.instance.redelivery
        refusals, heard = 0, time.monotonic()
        async with open_session(part.deployment.server.base_url) as session:
            while True:
                suspects = await redelivery.suspects(within=self._look_every)
                path = self._engine.endpoints.health
                try:
                    async with session.get(below(path), timeout=_PROBE) as reply:
                        if reply.status == _ENGINE_DEAD:
                            return f"{path} says that its engine is dead"
                    refusals, heard = 0, time.monotonic()
                    redelivery.acquit(suspects)
                except aiohttp.ClientConnectorError as error:
                    refusals += 1
                    if suspects or refusals > 1:
                        return f"it cannot be reached ({error.strerror or error})"
                except (aiohttp.ClientError, TimeoutError, OSError):
                    if time.monotonic() - heard > _SILENCE:
                        return f"{path} was not answered for {_SILENCE:.0f} s"
                if not await asyncio.to_thread(file.exists):
                    self._group.leave(part)
                    if not part.instance.in_flight.total():
                        return None

    def _say(self, file: Path, text: str) -> None:
        """Once, as long as it stays the same."""
        if self._said.get(file) != text:
            self._said[file] = text
            self._context.notify(text)


def _read_key(file: str | None) -> str | None:
    """The key in a file, if there is one that can be read here."""
    if file is None:
        return None
    try:
        return Path(file).read_text(encoding="ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        return None
