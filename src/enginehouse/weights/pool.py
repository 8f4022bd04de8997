"""Adapters by alias: loaded into a server when requests name them, within max_loras."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import msgspec

from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.errors import (
    AdapterError,
    ConfigurationError,
    EnginehouseError,
    UnknownModelError,
    nearest,
)
from enginehouse.core.sampler import Capabilities, Delta, SampleRequest, SampleResponse
from enginehouse.weights.loading import (
    load_adapter,
    prove_adapter,
    prove_or_reload,
    unload_adapter,
)
from enginehouse.weights.peft_folder import Shapes
from enginehouse.weights.proof import Baseline, Effect, measure_baseline
from enginehouse.weights.residence import Residence, Resident, State
from enginehouse.weights.store import AdapterStore, StoredAdapter, UncopiedAdapters

_ALIAS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")  # without @ and +, which join names


def alias_of(folder: Path) -> str:
    """The alias of an adapter that was given by its folder only: the folder's own name."""
    return re.sub(r"[^A-Za-z0-9_./-]", "-", folder.absolute().name).lstrip("./-") or "adapter"


def name_of(alias: str, digest: str) -> str:
    """What a server loads the content as; an engine's caches know an adapter by name and path."""
    return f"{alias}@{digest[:12]}"


def is_alias(name: str) -> bool:
    """Whether a name can be an adapter's alias."""
    return _ALIAS.fullmatch(name) is not None


def require_alias(alias: str) -> None:
    """Raise ConfigurationError for an alias that cannot be part of a name."""
    if not is_alias(alias):
        raise ConfigurationError(
            f"{alias!r} is not a valid name for an adapter",
            fix="use letters, digits and any of _ . / -",
        )


@dataclass(eq=False, kw_only=True)
class PooledAdapter(Resident):
    """One content under one alias, which requests may name; only its pool changes it.

    Requests name `alias`; the server loads it as `name` and lists it as `model`. `effect` is what
    was last proven of it, None if no proof was asked for, `proven_after` how many restarts there
    had been by then. `held` counts the requests in flight. `lost` is why it could not be restored
    (see AdapterPool).
    """

    alias: str
    name: str
    model: str
    stored: StoredAdapter
    effect: Effect | None = None
    proven_after: int = 0
    lost: AdapterError | None = None
    keepers: int = 0  # of its place, whether it is asked or not


class AdapterPool:
    """A Sampler whose requests may name adapters by alias, besides the server's own model.

    At most `max_loras` adapters are loaded: one that is asked for replaces the least recently used
    idle one, never one with requests in flight. An alias stands for the content that its folder had
    when it was last loaded, whatever happens to the folder afterwards. `base` and `max_rank` are
    what adapters are checked against. `for_many` is for a server that many people ask: adapters
    are proven beside other requests, and one that cannot be restored after a restart is given up,
    where the whole restart would fail otherwise; requests for it raise the reason until it has been
    unloaded and is loaded again.
    """

    def __init__(
        self,
        server: HTTPSampler,
        *,
        max_loras: int,
        store: AdapterStore | UncopiedAdapters,
        base: Shapes | None = None,
        max_rank: int | None = None,
        for_many: bool = False,
    ) -> None:
        if max_loras < 1:
            raise ConfigurationError("max_loras must be at least 1")
        self._server = server
        self._store = store
        self._base = base
        self._max_rank = max_rank
        self._for_many = for_many
        self._baseline: Baseline | None = None
        self._places = max_loras
        self._residence = Residence[PooledAdapter](max_loras, come=self._load, go=self._unload)
        self._entries: dict[str, PooledAdapter] = {}  # by name
        self._aliases: dict[str, PooledAdapter] = {}
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._restoring = asyncio.Lock()
        self.restarts = 0
        """How often the server may have lost its adapters: it was started again, or has slept."""

    @property
    def capabilities(self) -> Capabilities:
        """What may be asked of the server."""
        return self._server.capabilities

    def adapters(self) -> tuple[PooledAdapter, ...]:
        """Those that requests may name, by alias."""
        return tuple(entry for _, entry in sorted(self._aliases.items()))

    async def load(
        self, alias: str, folder: Path, *, prove: bool = False, owner: str = ""
    ) -> PooledAdapter:
        """Check, copy and load an adapter, which `alias` stands for from now on.

        Requests in flight for the alias's previous content are still answered by that content; on
        failure the alias stays as it was. Waits for a place as requests do. With `prove`, an
        adapter without effect is unloaded again. Adapters of several owners get places in turns.
        Raises AdapterError, or WireError and
        ServerGoneError if the server cannot be reached.
        """
        async with AsyncExitStack() as stack:
            return await self._load_and_hold(alias, folder, stack, prove=prove, owner=owner)

    @asynccontextmanager
    async def kept(
        self, alias: str, folder: Path, *, prove: bool = False
    ) -> AsyncIterator[PooledAdapter]:
        """Load an adapter as `load` does, and keep it loaded for the length of the block.

        Raises also AdapterError if others keep every place.
        """
        async with AsyncExitStack() as stack:
            yield await self._load_and_hold(alias, folder, stack, prove=prove, keep=True)

    async def _load_and_hold(
        self,
        alias: str,
        folder: Path,
        stack: AsyncExitStack,
        *,
        prove: bool,
        keep: bool = False,
        owner: str = "",
    ) -> PooledAdapter:
        """`load`, with the adapter held until `stack` is closed."""
        async with self._turns[self._valid(alias)]:
            entry = await self._enter(alias, folder, owner=owner)
            try:
                if keep:
                    stack.enter_context(self._place_kept(entry))
                await stack.enter_async_context(self._residence.hold(entry))
                if prove:
                    await self._prove(entry, self._server)
                self._point(alias, entry)
            except EnginehouseError:
                await stack.aclose()
                if self._aliases.get(alias) is not entry:
                    with suppress(EnginehouseError):
                        await self._residence.leave(entry)
                raise
            finally:
                if self._aliases.get(alias) is not entry:
                    self._drop(entry)
            return entry

    async def prove(self, alias: str) -> Effect:
        """Prove that an alias's adapter has an effect, now and after each restart.

        Raises as `load` does, NoEffectError among others; the adapter stays.
        """
        async with self.held(alias):
            entry = self._aliases[alias]
            return await self._prove(entry, self._server)

    @asynccontextmanager
    async def held(self, alias: str) -> AsyncIterator[str]:
        """Keep an alias's adapter loaded for the block; yields the model that requests name.

        For requests that do not pass through the pool. Raises as `sample` does.
        """
        entry = self._aliases.get(alias)
        if entry is None:
            raise self._unknown(alias)
        async with self._residence.hold(entry):
            if entry.lost is not None:
                raise entry.lost
            yield entry.model

    @contextmanager
    def _place_kept(self, entry: PooledAdapter) -> Iterator[None]:
        kept = [one.name for one in self._entries.values() if one.keepers]
        if not entry.keepers and len(kept) >= self._places:
            raise AdapterError(
                f"there is no place for the adapter {entry.name}",
                why=f"{', '.join(kept)} are in use, and the server takes {self._places} at a time",
                fix=f"serve with --max-loras {self._places + 1} or more, or close another first",
            )
        entry.keepers += 1
        try:
            yield
        finally:
            entry.keepers -= 1

    async def unload(self, alias: str) -> None:
        """Forget an alias, and unload its adapter once its requests have been answered.

        Raises UnknownModelError for an unknown alias, AdapterError if the server refuses.
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
        """Ask once; an adapter that the request names is loaded first if necessary.

        Raises WireError, or AdapterError if the server refuses to load it.
        """
        entry = self._find(request.model)
        if entry is None:
            try:
                return await self._server.sample(request)
            except UnknownModelError as error:
                raise self._unknown(request.model) from error
        async with self._residence.hold(entry):
            request = msgspec.structs.replace(request, model=entry.model)
            try:
                return await self._server.sample(request)
            except UnknownModelError:
                await self.restore_unannounced()
                return await self._server.sample(request)

    async def stream(self, request: SampleRequest) -> AsyncIterator[Delta]:
        """Ask once, yielding the answer as it is made; the adapter stays loaded until its end.

        A consumer that may leave early closes it with contextlib.aclosing.
        """
        entry = self._find(request.model)
        async with AsyncExitStack() as stack:
            if entry is not None:
                await stack.enter_async_context(self._residence.hold(entry))
                request = msgspec.structs.replace(request, model=entry.model)
            try:
                async with aclosing(self._deltas(request)) as deltas:
                    async for delta in deltas:
                        yield delta
            except UnknownModelError as error:
                if entry is None:
                    raise self._unknown(request.model) from error
                await self.restore_unannounced()
            else:
                return
            async with aclosing(self._deltas(request)) as deltas:
                async for delta in deltas:
                    yield delta

    def _deltas(self, request: SampleRequest) -> AsyncGenerator[Delta]:
        return cast("AsyncGenerator[Delta]", self._server.stream(request))

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """The base model's token ids of `text`."""
        return await self._server.tokenize(text, add_special_tokens=add_special_tokens)

    async def restore(self, direct: HTTPSampler | None = None) -> None:
        """Load again what the server lost in a restart or while it slept. Idempotent.

        `direct` asks the same server past the layers in which requests wait for this to be done.
        Adapters that were proven are proven again: now, or when they come in again. Raises
        AdapterError if the server refuses one that it had accepted before, or if one no longer has
        an effect, unless it is `for_many`.
        """
        self.restarts += 1
        server = direct or self._server
        listed = await server.models()
        for entry in self._residence.inside:
            try:
                if entry.state is State.IN and entry.model not in listed:
                    await load_adapter(server, entry.name, path=str(entry.stored.path))
                if entry.effect is not None:
                    await self._prove(entry, server)
            except AdapterError as error:
                if not self._for_many:
                    raise
                entry.lost = error

    async def restore_unannounced(self) -> None:
        """Restore after a restart that only failing requests have noticed, one at a time."""
        async with self._restoring:
            await self.restore()

    def _valid(self, alias: str) -> str:
        require_alias(alias)
        if alias == self._server.model:
            raise ConfigurationError(
                f"{alias} is the served model's own name", fix="give the adapter another one"
            )
        return alias

    async def _enter(self, alias: str, folder: Path, *, owner: str) -> PooledAdapter:
        """Check and copy the folder's content; its entry, new or known."""
        stored = await asyncio.to_thread(
            self._store.add, folder, base=self._base, max_rank=self._max_rank
        )
        name = name_of(alias, stored.digest)
        entry = self._entries.get(name)
        if entry is None:
            model = self._server.adapter_model(name)
            entry = PooledAdapter(alias=alias, name=name, model=model, stored=stored, owner=owner)
            self._entries[name] = entry
        self._residence.keep(entry)
        return entry

    def _point(self, alias: str, entry: PooledAdapter) -> None:
        before = self._aliases.get(alias)
        self._aliases[alias] = entry
        if before is not None and before is not entry:
            self._drop(before)

    def _drop(self, entry: PooledAdapter) -> None:
        """No new request can name it; it is unloaded when those in flight have been answered."""
        self._residence.retire(entry)
        if entry.state is State.OUT and not entry.waiting:
            self._entries.pop(entry.name, None)

    def _find(self, model: str | None) -> PooledAdapter | None:
        if model is None:
            return None
        by_name = self._aliases.get(model) or self._entries.get(model)
        return by_name or next((e for e in self._entries.values() if e.model == model), None)

    def _unknown(self, name: str | None) -> UnknownModelError:
        known = sorted({*self._aliases, self._server.model})
        close = nearest(name or "", known)
        return UnknownModelError(
            f"there is neither a model nor an adapter called {name!r}",
            fix=(f"did you mean {close!r}? " if close else "") + f"known: {', '.join(known)}",
        )

    async def _prove(self, entry: PooledAdapter, server: HTTPSampler) -> Effect:
        info, restarts = entry.stored.info, self.restarts
        if self._for_many and self._baseline is None:
            self._baseline = await measure_baseline(server, server.model)
        if entry.effect is not None:  # it had one, so the server may have lost it
            path = str(entry.stored.path)
            entry.effect = await prove_or_reload(
                server, entry.name, path=path, info=info, baseline=self._baseline
            )
        else:
            entry.effect = await prove_adapter(
                server, entry.name, info=info, baseline=self._baseline
            )
        entry.proven_after = restarts
        return entry.effect

    async def _load(self, entry: PooledAdapter) -> None:
        entry.lost = None
        await load_adapter(self._server, entry.name, path=str(entry.stored.path))
        if entry.effect is None or entry.proven_after == self.restarts:
            return
        try:
            await self._prove(entry, self._server)
        except EnginehouseError:
            with suppress(EnginehouseError):
                await unload_adapter(self._server, entry.name)
            raise

    async def _unload(self, entry: PooledAdapter) -> None:
        try:
            await unload_adapter(self._server, entry.name)
        finally:
            if entry.retired and not entry.waiting:
                self._entries.pop(entry.name, None)
