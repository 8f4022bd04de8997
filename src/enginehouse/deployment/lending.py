"""An adapter on a running server, loaded for as long as some process of this machine needs it."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from enginehouse.core.errors import EnginehouseError, UnknownNameError
from enginehouse.deployment.adapters import ServedAdapter, adapters_on, add_adapter
from enginehouse.deployment.running_servers import canonical_address
from enginehouse.engines.base import Engine
from enginehouse.provisioning import content_folders
from enginehouse.runtime.context import Context
from enginehouse.servers.endpoint import Server
from enginehouse.weights.pool import alias_of

_LENT = ".lent"  # ends the names of adapters that are unloaded after use


@asynccontextmanager
async def borrowed_adapter(
    server: Server, engine: Engine, folder: Path, context: Context
) -> AsyncIterator[ServedAdapter]:
    """The adapter, which is loaded as NAME.lent@DIGEST for the block.

    The last process of this machine to use it unloads it. Where that fails, `context.notify` is
    told: the answers until then are as good. Raises what `add_adapter` does.
    """
    alias = alias_of(folder) + _LENT
    identity = f"{canonical_address(server.base_url)} {alias}"
    key = f"lent-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    adapters = context.layout.adapters
    borrowers = adapters / ".lent" / key

    def turn() -> AbstractAsyncContextManager[None]:
        waiting = f"waiting for other users of {alias}"
        return content_folders.claimed(adapters, key, on_wait=lambda: context.notify(waiting))

    mine = FileLock(borrowers / secrets.token_hex(8))
    try:
        async with turn():
            await asyncio.to_thread(borrowers.mkdir, parents=True, exist_ok=True)
            mine.acquire()
            lent = await add_adapter(server, engine, folder, context, alias=alias)
        try:
            yield lent
        finally:
            async with turn():
                _forget(mine)
                if not any(map(_is_held, borrowers.iterdir())):
                    await _take_back(server, engine, alias, context)
    finally:
        _forget(mine)


def _forget(lock: FileLock) -> None:
    lock.release()
    Path(lock.lock_file).unlink(missing_ok=True)


def _is_held(file: Path) -> bool:
    """Whether its borrower is alive; the file of one that was killed is removed."""
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    _forget(lock)
    return False


async def _take_back(server: Server, engine: Engine, alias: str, context: Context) -> None:
    try:
        async with adapters_on(server, engine, context) as adapters:
            await adapters.unload(alias)
    except UnknownNameError:
        pass  # the server was started again, or another process was faster
    except EnginehouseError as error:
        context.notify(f"{alias} may still be loaded at {server.base_url}: {error.message}")
