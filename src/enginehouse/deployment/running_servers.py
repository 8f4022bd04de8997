"""Servers that are running: our own by name, or any by address."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from yarl import URL

from enginehouse.client.transport import normal_base_url
from enginehouse.core.errors import AdapterError
from enginehouse.deployment.configuration import AskConfig
from enginehouse.engines.base import ServedEngine, SupportsAdapters, is_loopback
from enginehouse.engines.registry import load_engine, load_served_engine
from enginehouse.servers.endpoint import API_KEY_VARIABLE, Server, attach_server, server_of
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
    """The server with the name or address `target`.

    Its requests carry `api_key`, by default the environment's, or else the administrative one.
    Raises UnknownNameError, and WireError for a server that cannot be used.
    """
    if "://" in target:
        record = record_at(target, layout=layout)
    else:
        record = find_server(target, layout=layout)
    key = api_key or os.environ.get(API_KEY_VARIABLE)
    engine = load_served_engine(record.engine if record else None)
    if record is None:
        server = await attach_server(target, engine=engine, api_key=key)
    else:
        admin_key = read_key(record)
        own_key = (key or admin_key) if record.has_api_key else None
        server = server_of(record, api_key=own_key, admin_key=admin_key)
    return RunningServer(record=record, server=server, engine=engine)


def with_running_server(plan: AskConfig, *, layout: Layout) -> AskConfig:
    """The plan, of our own running server if its model is the name of one.

    A file or folder of the same name is a model.
    """
    name = plan.model
    if name is None or plan.url or plan.path or plan.addresses or Path(name).exists():
        return plan
    for status in list_servers(layout):
        record = status.record
        if record.name == name and status.pids:
            server = {"url": record.base_url, "model": None, "engine": plan.engine or record.engine}
            return plan.model_copy(update=server)
    return plan


def record_at(url: str, *, layout: Layout) -> ServerRecord | None:
    """The record of our own server at that address, however the address is written."""
    wanted = canonical_address(url)
    for status in list_servers(layout):
        if canonical_address(status.record.base_url) == wanted:
            return status.record
    return None


def canonical_address(url: str) -> str:
    """The same text for every way to write a server's address; to compare, not to connect.

    localhost, 127.0.0.1, [::1] and the 0.0.0.0 of a server that listens everywhere are one host:
    this machine. Raises ConfigurationError for a text that is not an address.
    """
    base = URL(normal_base_url(url))
    host = base.host or ""
    is_here = is_loopback(host) or host in _EVERYWHERE
    return str(base.with_host("127.0.0.1") if is_here else base).rstrip("/")


def largest_rank(server: Server, *, layout: Layout) -> int | None:
    """The largest rank of an adapter that the server accepts; None if that is not known.

    Raises AdapterError for a server whose command line is known and does not enable adapters.
    """
    record = record_at(server.base_url, layout=layout)
    command = server.command or (record.command if record else None)
    engine = load_engine(server.engine)
    if command is None or not isinstance(engine, SupportsAdapters):
        return None
    if engine.lora.are_enabled(command):
        return engine.lora.rank_in(command)
    name = server.name or (record.name if record else None) or server.base_url
    raise AdapterError(
        f"{name} takes no adapters",
        why="it was started without --enable-lora",
        fix=f"enginehouse stop {name}; then serve the model with --enable-lora",
    )
