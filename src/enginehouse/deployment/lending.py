"""An adapter on a server that runs already, for as long as somebody of this machine asks it."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from enginehouse.core.errors import EnginehouseError, UnknownNameError
from enginehouse.deployment.adapters import adapters_on, lend
from enginehouse.deployment.running_servers import one_spelling
from enginehouse.engines.base import Engine
from enginehouse.provisioning import content_folders
from enginehouse.runtime.context import Notify
from enginehouse.servers.endpoint import Server
from enginehouse.store.layout import Layout
from enginehouse.weights.pool import alias_of

_LENT = ".lent"  # how the name of what is to be taken back ends, which is nobody's own


@asynccontextmanager
async def borrowed(
    server: Server, engine: Engine, *, folder: Path, layout: Layout, notify: Notify
) -> AsyncIterator[str]:
    """The model that requests name, NAME.lent@DIGEST, which is loaded for the block.

    The last of this machine's borrowers of that name unloads it. Where it cannot, `notify` is told:
    what was asked meanwhile is as good. Raises what `lend` does.
    """
    alias = alias_of(folder) + _LENT
    spelling = f"{one_spelling(server.base_url)} {alias}"
    key = f"lent-{hashlib.sha256(spelling.encode()).hexdigest()[:16]}"
    borrowers = layout.adapters / ".lent" / key

    def turn() -> AbstractAsyncContextManager[None]:
        return content_folders.claimed(
            layout.adapters, key, on_wait=lambda: notify(f"waiting for others who borrow {alias}")
        )

    mine = FileLock(borrowers / secrets.token_hex(8))
    try:
        async with turn():
            borrowers.mkdir(parents=True, exist_ok=True)
            mine.acquire()
            lent = await lend(
                server, engine, folder=folder, layout=layout, notify=notify, alias=alias
            )
        try:
            yield lent.models[0]
        finally:
            async with turn():
                _forget(mine)
                if not any(map(_is_held, borrowers.iterdir())):
                    await _take_back(server, engine, alias, layout=layout, notify=notify)
    finally:
        _forget(mine)


def _forget(lock: FileLock) -> None:
    lock.release()
    Path(lock.lock_file).unlink(missing_ok=True)


def _is_held(file: Path) -> bool:
    """Whether its borrower lives; the file of one that was killed is removed."""
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    _forget(lock)
    return False


async def _take_back(
    server: Server, engine: Engine, alias: str, *, layout: Layout, notify: Notify
) -> None:
    try:
        async with adapters_on(server, engine, layout=layout, notify=notify) as its:
            await its.unload(alias)
    except UnknownNameError:
        pass  # the server was started again, or somebody was faster
    except EnginehouseError as error:
        notify(f"{alias} may still be loaded at {server.base_url}: {error.message}")
