"""Adapters by alias: loaded into the servers when they are asked for, within max_loras."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from enginehouse.core.errors import (
    AdapterError,
    ConfigurationError,
    EnginehouseError,
    UnknownModelError,
    nearest,
)
from enginehouse.core.sampler import (
    Capabilities,
    Delta,
    Sampler,
    SampleRequest,
    SampleResponse,
)
from enginehouse.servers.replicas import ReplicaSet
from enginehouse.weights.everywhere import (
    AdapterServer,
    AliasedContent,
    load_everywhere,
    unload_everywhere,
)
from enginehouse.weights.peft_folder import Shapes
from enginehouse.weights.proof import Effect, prove_effect
from enginehouse.weights.residence import Residence, Resident, State
from enginehouse.weights.store import AdapterStore, StoredAdapter

_ALIAS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")  # neither of @ and +, which join names


def alias_of(folder: Path) -> str:
    """What an adapter is called that was given by its folder only: `folder`'s own name."""
    return re.sub(r"[^A-Za-z0-9_./-]", "-", folder.absolute().name).lstrip("./-") or "adapter"


class LoadedAdapter(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter that has been loaded. Requests name `alias`; the server knows it as `model`.

    `effect` is the smallest that the servers proved, None where no proof was asked for.
    """

    alias: str
    model: str
    stored: StoredAdapter
    effect: Effect | None


class PooledAdapter(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter that requests may name, and what is going on with it."""

    alias: str
    model: str
    stored: StoredAdapter
    loaded: bool
    in_flight: int
    waiting: int


@dataclass(eq=False, kw_only=True)
class _Entry(Resident):
    """What may have one of the servers' places. `proves`: somebody asked that it has an effect."""

    content: AliasedContent
    proves: bool = False


class AdapterPool:
    """A Sampler whose requests may name adapters by alias, besides the servers' own models.

    Every adapter is on every one of `servers` or on none. At most `max_loras` are loaded: one that
    is asked for takes the place of the least recently used idle one, never of one in flight.
    An alias stands for the content that its folder had when it was registered last; whatever
    becomes of the folder. `base` and `max_rank` are what adapters are checked against.
    """

    def __init__(
        self,
        servers: Sequence[AdapterServer],
        *,
        max_loras: int,
        store: AdapterStore,
        base: Shapes | None = None,
        max_rank: int | None = None,
    ) -> None:
        if max_loras < 1:
            raise ConfigurationError("max_loras must be at least 1")
        self.servers = tuple(servers)
        self._sampler: Sampler = servers[0] if len(servers) == 1 else ReplicaSet(servers)
        self._store = store
        self._base = base
        self._max_rank = max_rank
        self._residence: Residence[_Entry] = Residence(max_loras, come=self._come, go=self._go)
        self._entries: dict[str, _Entry] = {}  # by name
        self._aliases: dict[str, _Entry] = {}
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._mending = asyncio.Lock()

    @property
    def capabilities(self) -> Capabilities:
        """What may be asked of the servers."""
        return self._sampler.capabilities

    def adapters(self) -> tuple[PooledAdapter, ...]:
        """Those that requests may name, by alias."""
        return tuple(
            PooledAdapter(
                alias=alias,
                model=entry.content.model,
                stored=entry.content.stored,
                loaded=entry.state is State.IN,
                in_flight=entry.held,
                waiting=len(entry.waiting),
            )
            for alias, entry in sorted(self._aliases.items())
        )

    async def register(self, alias: str, folder: Path) -> StoredAdapter:
        """Check and copy an adapter; from now on `alias` stands for it. It is loaded when needed.

        Requests under way for what the alias stood for before are answered by that. Raises
        AdapterError.
        """
        async with self._turns[self._checked(alias)]:
            entry = await self._entry(alias, folder)
            self._point(alias, entry)
            return entry.content.stored

    async def load(self, alias: str, folder: Path, *, prove: bool = False) -> LoadedAdapter:
        """Register an adapter and load it on every server, or on none and leave `alias` as it was.

        Waits for a place as requests do. `prove`: that it has an effect on every server, else it
        is unloaded. Raises AdapterError, or WireError and ServerGoneError where servers cannot be
        reached.
        """
        async with self._turns[self._checked(alias)]:
            entry = await self._entry(alias, folder)
            try:
                async with self._residence.hold(entry):
                    effect = await self._prove(entry) if prove else None
                    entry.proves = entry.proves or prove
                    self._point(alias, entry)
            except EnginehouseError:
                if self._aliases.get(alias) is not entry:
                    with suppress(EnginehouseError):
                        await self._residence.leave(entry)
                raise
            finally:
                if self._aliases.get(alias) is not entry:
                    self._drop(entry)
            return LoadedAdapter(
                alias=alias, model=entry.content.model, stored=entry.content.stored, effect=effect
            )

    async def unload(self, alias: str) -> None:
        """Forget an alias, and unload its adapter once what was asked of it has been answered.

        Raises UnknownModelError for no alias, AdapterError where a server refuses.
        """
        async with self._turns[alias]:
            entry = self._aliases.pop(alias, None)
            if entry is None:
                raise self._unknown(alias)
            try:
                await self._residence.leave(entry)
            finally:
                self._drop(entry)

    async def sample(self, request: SampleRequest) -> SampleResponse:
        """Ask once, of the adapter that the request's model names, loaded if it is not.

        Raises WireError, or AdapterError where a server refuses to load it.
        """
        entry = self._named(request.model)
        if entry is None:
            try:
                return await self._sampler.sample(request)
            except UnknownModelError as error:
                raise self._unknown(request.model) from error
        async with self._residence.hold(entry):
            named = msgspec.structs.replace(request, model=entry.content.model)
            try:
                return await self._sampler.sample(named)
            except UnknownModelError:
                await self._mend()
                return await self._sampler.sample(named)

    async def stream(self, request: SampleRequest) -> AsyncIterator[Delta]:
        """Ask once, yielding the answer as it is made; the adapter stays loaded until its end.

        A consumer that may leave early closes it with contextlib.aclosing.
        """
        entry = self._named(request.model)
        if entry is None:
            async with aclosing(_streamed(self._sampler, request)) as deltas:
                async for delta in deltas:
                    yield delta
            return
        async with self._residence.hold(entry):
            named = msgspec.structs.replace(request, model=entry.content.model)
            async with aclosing(self._streamed_once_more(named)) as deltas:
                async for delta in deltas:
                    yield delta

    async def _streamed_once_more(self, request: SampleRequest) -> AsyncGenerator[Delta]:
        """What is streamed, at the second attempt if the server has lost the adapter."""
        try:
            async with aclosing(_streamed(self._sampler, request)) as deltas:
                async for delta in deltas:
                    yield delta
        except UnknownModelError:
            await self._mend()
        else:
            return
        async with aclosing(_streamed(self._sampler, request)) as deltas:
            async for delta in deltas:
                yield delta

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """The base model's token ids of `text`."""
        return await self._sampler.tokenize(text, add_special_tokens=add_special_tokens)

    async def restore(self, server: AdapterServer | None = None) -> None:
        """Load again what `server`, or any of them, lost in a restart or in its sleep. Idempotent.

        What was proven when it was loaded is proven again. Raises AdapterError where a server
        refuses what it had taken before, or where that no longer has an effect.
        """
        servers = self.servers if server is None else (server,)
        await asyncio.gather(*(self._restore(one) for one in servers))

    async def _restore(self, server: AdapterServer) -> None:
        listed = await server.models()
        for entry in self._residence.inside:
            if entry.state is State.IN and entry.content.model not in listed:
                await load_everywhere([server], entry.content)
            if entry.proves:
                await self._prove_on(server, entry)

    async def _mend(self) -> None:
        """A server lost its adapters and nobody told us; one look for all who notice."""
        async with self._mending:
            await self.restore()

    def _checked(self, alias: str) -> str:
        if not _ALIAS.fullmatch(alias):
            raise ConfigurationError(
                f"{alias!r} is no name for an adapter", fix="use letters, digits and any of _ . / -"
            )
        if any(alias == server.model for server in self.servers):
            raise ConfigurationError(
                f"{alias} is the served model's own name", fix="give the adapter another one"
            )
        return alias

    async def _entry(self, alias: str, folder: Path) -> _Entry:
        stored = await asyncio.to_thread(
            self._store.add, folder, base=self._base, max_rank=self._max_rank
        )
        name = f"{alias}@{stored.digest[:12]}"
        entry = self._entries.get(name)
        if entry is None:
            model = self.servers[0].adapter_model(name)
            content = AliasedContent(alias=alias, name=name, model=model, stored=stored)
            entry = _Entry(content=content)
            self._entries[name] = entry
        self._residence.keep(entry)
        return entry

    def _point(self, alias: str, entry: _Entry) -> None:
        before = self._aliases.get(alias)
        self._aliases[alias] = entry
        if before is not None and before is not entry:
            self._drop(before)

    def _drop(self, entry: _Entry) -> None:
        """Nobody can name it any more; it goes when what was asked of it has been answered."""
        self._residence.retire(entry)
        if entry.state is State.OUT and not entry.waiting:
            self._entries.pop(entry.content.name, None)

    def _named(self, model: str | None) -> _Entry | None:
        if model is None:
            return None
        found = self._aliases.get(model) or self._entries.get(model)
        if found is None:
            found = next(
                (one for one in self._entries.values() if one.content.model == model), None
            )
        return found

    def _unknown(self, name: str | None) -> UnknownModelError:
        known = sorted({*self._aliases, *(server.model for server in self.servers)})
        close = nearest(name or "", known)
        return UnknownModelError(
            f"there is neither a model nor an adapter called {name!r}",
            fix=(f"did you mean {close!r}? " if close else "") + f"known: {', '.join(known)}",
        )

    async def _prove(self, entry: _Entry) -> Effect:
        effects = await asyncio.gather(*(self._prove_on(one, entry) for one in self.servers))
        return min(effects, key=lambda effect: effect.mean_difference)

    async def _prove_on(self, server: AdapterServer, entry: _Entry) -> Effect:
        """Prove it; at the second attempt if the server had it before, and has lost it since."""
        content = entry.content
        try:
            return await self._effect(server, content)
        except AdapterError:
            if not entry.proves:
                raise
        await unload_everywhere([server], content)
        await load_everywhere([server], content)
        return await self._effect(server, content)

    async def _effect(self, server: AdapterServer, content: AliasedContent) -> Effect:
        return await prove_effect(
            server, model=content.model, base_model=server.model, info=content.stored.info
        )

    async def _come(self, entry: _Entry) -> None:
        await load_everywhere(self.servers, entry.content)

    async def _go(self, entry: _Entry) -> None:
        try:
            await unload_everywhere(self.servers, entry.content)
        finally:
            if entry.retired and not entry.waiting:
                self._entries.pop(entry.content.name, None)


async def _streamed(sampler: Sampler, request: SampleRequest) -> AsyncGenerator[Delta]:
    """What `sampler` streams, closed with this."""
    deltas = sampler.stream(request)
    async with aclosing(deltas):  # type: ignore[type-var]
        async for delta in deltas:
            yield delta
