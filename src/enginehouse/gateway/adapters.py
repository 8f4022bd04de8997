"""Adapters that a gateway's requests name, loaded on demand from a folder."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from enginehouse.core.errors import AdapterError, ConfigurationError
from enginehouse.core.sampler import Capability
from enginehouse.core.system_errors import advice
from enginehouse.deployment.base import Deployment
from enginehouse.deployment.loadable_adapters import LoadableAdapters
from enginehouse.deployment.running_servers import largest_rank
from enginehouse.dialects.base import require
from enginehouse.runtime.context import Context
from enginehouse.weights.peft_folder import CONFIG, TENSORS, read_peft_folder
from enginehouse.weights.pool import is_alias
from enginehouse.weights.store import AdapterStore, StoredAdapter, UncopiedAdapters

_COARSEST_CLOCK = 2.0  # seconds: how far apart two writes may be that leave a file the same time
_PATIENCE = 60.0  # seconds for an adapter that is being written to
_PAUSE = 0.1

_State = tuple[tuple[int, int, int], ...]  # inode, size and time of each file


@asynccontextmanager
async def open_adapter_folder(
    folder: Path, *, deployment: Deployment, max_loras: int | None, context: Context
) -> AsyncIterator[AdapterFolder]:
    """The adapters in `folder`, loaded into the deployment's server as they are asked for.

    `max_loras` is how many places of a server that is not ours are taken, by default one; a server
    of our own has those of its options. Raises ConfigurationError, AdapterError for a server
    without places, and UnsupportedError for an engine without adapters.
    """
    capabilities = deployment.sampler.capabilities
    require(capabilities, Capability.ADAPTERS, "LoRA adapters")
    if deployment.provenance.adapter_digest is not None:
        raise ConfigurationError(
            "an adapter and a folder of adapters cannot be served together",
            fix="put the adapter into the folder; requests select it by name",
        )
    await asyncio.to_thread(_names_in, folder)
    max_rank = await asyncio.to_thread(largest_rank, deployment.server, layout=context.layout)
    async with deployment.loadable_adapters(UncopiedAdapters(), max_loras=max_loras) as loadable:
        try:
            yield AdapterFolder(
                folder,
                loadable=loadable,
                store=AdapterStore(context.layout),
                max_rank=max_rank,
                proves=Capability.PROMPT_LOGPROBS in capabilities.supports,
            )
        finally:
            await loadable.unload_all()


def readable_adapters(folder: Path) -> list[Path]:
    """The adapters in `folder` that are whole. Blocking. Raises ConfigurationError."""
    readable = []
    for name in _names_in(folder):
        if is_alias(name) and (folder / name / CONFIG).is_file():
            with suppress(AdapterError):
                read_peft_folder(folder / name)
                readable.append(folder / name)
    return readable


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise ConfigurationError(
            f"the folder of adapters {folder} cannot be read",
            why=error.strerror,
            fix=advice(error, otherwise="check the path given to --adapters"),
        ) from error


@dataclass(kw_only=True)
class _Known:
    """A content, and the state in which its files were before they were read."""

    state: _State
    stored: StoredAdapter
    settled: bool  # a later write would have changed the state


class AdapterFolder:
    """The adapters whose folders are in one folder: `names()` are the folders' names.

    A folder's content is copied when it is first asked for and when it has changed, so that what a
    name stands for is what was in its folder at the time of the request.
    """

    def __init__(
        self,
        folder: Path,
        *,
        loadable: LoadableAdapters,
        store: AdapterStore,
        max_rank: int | None,
        proves: bool,
    ) -> None:
        self._folder = folder
        self._loadable = loadable
        self._store = store
        self._max_rank = max_rank
        self._proves = proves
        self._known: dict[str, _Known] = {}
        self._seen: dict[str, tuple[_State, float]] = {}
        self._reading: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._loading = asyncio.Lock()  # the requests of two proofs together kill some servers
        self._loaded: dict[str, str] = {}  # alias to digest

    def names(self) -> tuple[str, ...]:
        """The names that requests may give. Blocking, for the time of reading one folder."""
        try:
            return tuple(name for name in _names_in(self._folder) if self._is_adapter(name))
        except ConfigurationError:  # it was there at the start
            return ()

    def served_names(self) -> frozenset[str]:
        """What the server calls those that it has, or had."""
        return self._loadable.served_names()

    async def find(self, name: str) -> StoredAdapter | None:
        """The content of the adapter `name` now; None if there is no such folder.

        Takes two looks at the disk while nothing changes. Raises AdapterError.
        """
        if not self._is_adapter(name):
            return None
        state = self._state_of(name)
        known = self._known.get(name)
        if known is not None and known.settled and known.state == state:
            return known.stored
        async with self._reading[name]:
            return await self._read(name)

    @asynccontextmanager
    async def held(self, name: str, stored: StoredAdapter) -> AsyncIterator[str]:
        """What the server calls this content, which it has loaded for the length of the block.

        Waits while all places are in use. Raises AdapterError and WireError.
        """
        if self._loaded.get(name) != stored.digest:
            async with self._loading:
                if self._loaded.get(name) != stored.digest:
                    proves = self._proves and not stored.info.is_zero
                    await self._loadable.load(name, stored.path, prove=proves)
                    self._loaded[name] = stored.digest
        async with AsyncExitStack() as stack:
            try:
                # from here to its first await the name stands for this content
                model = await stack.enter_async_context(self._loadable.held(name))
            except AdapterError:  # it was lost in a restart, and is loaded from scratch next time
                if self._loaded.pop(name, None) is not None:
                    await self._loadable.unload(name)
                raise
            yield model

    async def restore(self) -> None:
        """Load again what the server has lost, where nobody but its refusals told so."""
        await self._loadable.restore()

    def _is_adapter(self, name: str) -> bool:
        return "/" not in name and is_alias(name) and (self._folder / name / CONFIG).is_file()

    async def _read(self, name: str) -> StoredAdapter:
        """Copy and hash what is there; waits while it is being written."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            state = self._state_of(name)
            known = self._known.get(name)
            if known is not None and known.settled and known.state == state:
                return known.stored
            settled = self._is_settled(name, state)
            try:
                stored = await asyncio.to_thread(
                    self._store.add, self._folder / name, max_rank=self._max_rank
                )
            except AdapterError:
                if self._state_of(name) == state or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_PAUSE)
                continue
            self._known[name] = _Known(state=state, stored=stored, settled=settled)
            return stored

    def _is_settled(self, name: str, state: _State) -> bool:
        """Whether a write after this moment gives the files another state.

        Not if they were written just now: their file system's clock may be as coarse as seconds,
        or differ from ours.
        """
        now = time.monotonic()
        seen, since = self._seen.setdefault(name, (state, now))
        if seen != state:
            since = now
            self._seen[name] = (state, now)
        age = time.time() - max((modified for *_, modified in state), default=0) / 1e9
        return age > _COARSEST_CLOCK or now - since > _COARSEST_CLOCK

    def _state_of(self, name: str) -> _State:
        state = []
        for file in (CONFIG, TENSORS):
            try:
                status = (self._folder / name / file).stat()
            except OSError:
                continue
            state.append((status.st_ino, status.st_size, status.st_mtime_ns))
        return tuple(state)
