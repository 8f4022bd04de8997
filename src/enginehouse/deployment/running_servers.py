"""A server that runs already: one of ours by its name, or any by its address."""

from __future__ import annotations

import os
from dataclasses import dataclass

from yarl import URL

from enginehouse.client.transport import normal_base_url
from enginehouse.core.errors import AdapterError
from enginehouse.engines.base import ServedEngine, SupportsAdapters, is_loopback
from enginehouse.engines.registry import load_engine, load_served_engine
from enginehouse.servers.endpoint import API_KEY_VARIABLE, Server, attach_server
from enginehouse.servers.records import ServerRecord, find_server, list_servers, read_key
from enginehouse.store.layout import Layout

_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - nothing is bound to it here


@dataclass(frozen=True, kw_only=True)
class RunningServer:
    """`record` is None for a server that is not ours."""

    record: ServerRecord | None
    server: Server
    engine: ServedEngine


async def find_running(target: str, *, layout: Layout, api_key: str | None = None) -> RunningServer:
    """The server that `target` is the name or the address of.

    Asked with `api_key`, by default the environment's, or else the administrative one.
    Raises UnknownNameError, and WireError for one that cannot be used.
    """
    record = _record(target, layout)
    server, engine = await _asked(record, target, api_key or os.environ.get(API_KEY_VARIABLE))
    return RunningServer(record=record, server=server, engine=engine)


def _record(target: str, layout: Layout) -> ServerRecord | None:
    if "://" not in target:
        return find_server(target, layout=layout)
    return record_at(target, layout=layout)


def record_at(url: str, *, layout: Layout) -> ServerRecord | None:
    """The record of the server of ours at that address, whichever of its spellings it is."""
    wanted = one_spelling(url)
    found = (status.record for status in list_servers(layout))
    return next((record for record in found if one_spelling(record.base_url) == wanted), None)


def one_spelling(url: str) -> str:
    """One text for every way to write a server's address; to compare, not to ask.

    localhost, 127.0.0.1, [::1] and the 0.0.0.0 of a server that listens everywhere are one host:
    this machine. Raises ConfigurationError for what is no address.
    """
    base = URL(normal_base_url(url))
    host = base.host or ""
    here = is_loopback(host) or host in _EVERYWHERE
    return str(base.with_host("127.0.0.1") if here else base).rstrip("/")


async def _asked(
    record: ServerRecord | None, target: str, key: str | None
) -> tuple[Server, ServedEngine]:
    engine = load_served_engine(record.engine if record else None)
    if record is None:
        return await attach_server(target, engine=engine, api_key=key), engine
    return Server(
        name=record.name,
        base_url=record.base_url,
        models=record.models,
        pid=record.process.pid,
        log=record.log,
        engine=record.engine,
        version=record.version,
        environment=record.environment,
        command=record.command,
        api_key=(key or read_key(record)) if record.has_api_key else None,
        admin_key=read_key(record),
        key_file=record.key_file,
        owned=False,
    ), engine


def largest_rank(server: Server, *, layout: Layout) -> int | None:
    """The largest rank of an adapter that the server takes; None where that is not known."""
    record = record_at(server.base_url, layout=layout)
    command = server.command or (record.command if record else None)
    if command is None:
        return None
    engine = load_engine(server.engine)
    return engine.lora.rank_in(command) if isinstance(engine, SupportsAdapters) else None


def demand_adapters(server: Server, *, layout: Layout) -> None:
    """Raise AdapterError for a server whose command line is known, and enables no adapters."""
    record = record_at(server.base_url, layout=layout)
    command = server.command or (record.command if record else None)
    engine = load_engine(server.engine)
    if command is None or not isinstance(engine, SupportsAdapters):
        return
    if engine.lora.are_enabled(command):
        return
    name = server.name or (record.name if record else None) or server.base_url
    raise AdapterError(
        f"{name} takes no adapters",
        why="it was started without --enable-lora",
        fix=f"enginehouse stop {name}; then serve the model with --enable-lora",
    )
