"""Servers that announce themselves in a folder, for clients that may run on other machines.

Each has one file there as long as it takes requests, which it writes when it is ready. Before it
stops it removes the file and answers what it has accepted. A server that was killed leaves its file
behind: whether it answers is for the client to see.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
from yarl import URL

from enginehouse.core.errors import ConfigurationError, WireError
from enginehouse.core.system_errors import advice
from enginehouse.deployment.samplers import make_sampler
from enginehouse.engines.base import Engine
from enginehouse.provisioning.models import ResolvedModel
from enginehouse.runtime.context import Context
from enginehouse.servers.endpoint import API_KEY_VARIABLE, Server
from enginehouse.store.files import require_folder, write_whole

LOOK_EVERY = 1.0  # seconds between two looks of a client into the folder
_DRAIN = 30.0  # seconds in which what was accepted is answered; the rest is asked of others
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - nothing is bound to it here


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """How a server is reached, and what answers there. It holds no key.

    The key that requests must carry is in the variable `key_variable`, or in `api_key_file`;
    the administrative one is in `key_file`. Only their owner can read these files.
    """

    url: str
    models: tuple[str, ...]
    engine: str | None
    version: str | None
    weights_digest: str | None
    key_variable: str | None = None
    api_key_file: str | None = None
    key_file: str | None = None


@asynccontextmanager
async def announced(
    server: Server,
    folder: Path,
    *,
    host: str,
    engine: Engine,
    model: ResolvedModel,
    context: Context,
    share_key: bool,
) -> AsyncIterator[None]:
    """Announce the server in `folder` for the length of the block; then let it finish its work.

    `host` is what it listens on; one that listens everywhere is reached by this machine's name.
    With `share_key`, its API key is in a private file beside the announcement meanwhile; else those
    who ask have it in their environment. Raises StoreError.
    """
    await asyncio.to_thread(require_folder, folder)
    name = socket.gethostname()
    url = URL(server.base_url)
    if host in _EVERYWHERE:
        url = url.with_host(name)
    file = folder / f"{name}-{server.name}.json"
    key_file = folder / f".{name}-{server.name}.key" if share_key and server.api_key else None
    announcement = Announcement(
        url=str(url).rstrip("/"),
        models=server.models,
        engine=server.engine,
        version=server.version,
        weights_digest=model.weights_digest,
        key_variable=API_KEY_VARIABLE if server.api_key and not key_file else None,
        api_key_file=str(key_file.absolute()) if key_file else None,
        key_file=str(server.key_file) if server.key_file else None,
    )
    content = msgspec.json.format(msgspec.json.encode(announcement))
    if key_file is not None and server.api_key is not None:
        key = server.api_key.encode()
        await asyncio.to_thread(write_whole, key_file, key, private=True)
    await asyncio.to_thread(write_whole, file, content)
    context.notify(f"announced in {file}")
    try:
        yield
    finally:
        for written in (file, key_file):
            if written is not None:
                written.unlink(missing_ok=True)
        context.notify("finishing the requests in flight; Ctrl-C stops at once")
        await _drained(server, engine)


async def _drained(server: Server, engine: Engine) -> None:
    """Wait until clients have seen that it leaves, and nothing is in flight any more."""
    with suppress(TimeoutError, WireError):
        async with asyncio.timeout(_DRAIN), make_sampler(server, engine, concurrency=1) as sampler:
            while True:
                await asyncio.sleep(2 * LOOK_EVERY)
                load = await sampler.load()
                if load is None or not load.running + load.waiting:
                    return


def read_announcements(folder: Path) -> dict[Path, Announcement | ConfigurationError]:
    """What is announced in `folder` now, by file, or why a file announces nothing. Blocking.

    Files of other users are left out, since an announced server is sent an API key. A folder that
    does not exist has none. Raises ConfigurationError for one that cannot be read.
    """
    announcements: dict[Path, Announcement | ConfigurationError] = {}
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix == ".json")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigurationError(
            f"cannot look for servers in {folder}",
            why=error.strerror,
            fix=advice(error, otherwise="name the folder that servers announce themselves in"),
        ) from error
    for file in files:
        try:
            content = file.read_bytes()
            if hasattr(os, "getuid") and file.stat().st_uid != os.getuid():
                continue
            announcements[file] = msgspec.json.decode(content, type=Announcement)
        except OSError:
            continue  # it has just been removed
        except (msgspec.MsgspecError, RecursionError) as error:
            announcements[file] = ConfigurationError(
                f"{file} does not announce a server",
                why=str(error),
                fix="name a folder that only `enginehouse serve --announce` writes to",
            )
    return announcements
