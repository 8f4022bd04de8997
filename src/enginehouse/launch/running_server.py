"""A server that runs already: one of ours by its name, or any by its address."""

from __future__ import annotations

import os
from dataclasses import dataclass

import msgspec

from enginehouse.client.transport import (
    AiohttpTransport,
    Timeouts,
    WireRequest,
    normal_base_url,
)
from enginehouse.core.errors import MalformedResponseError
from enginehouse.engines.base import ServedEngine
from enginehouse.engines.registry import ENGINES
from enginehouse.servers.endpoint import API_KEY_VARIABLE, Server, attach_server
from enginehouse.servers.records import ServerRecord, find_server, list_servers
from enginehouse.store.layout import Layout


@dataclass(frozen=True, kw_only=True)
class RunningServer:
    """`record` is None for a server that is not ours."""

    record: ServerRecord | None
    server: Server
    engine: ServedEngine


async def find_running(target: str, *, layout: Layout, api_key: str | None = None) -> RunningServer:
    """The server that `target` is the name or the address of; the environment's key by default.

    Raises UnknownNameError, and WireError for one that cannot be used.
    """
    record = _record(target, layout)
    server, engine = await _asked(record, target, api_key or os.environ.get(API_KEY_VARIABLE))
    return RunningServer(record=record, server=server, engine=engine)


def _record(target: str, layout: Layout) -> ServerRecord | None:
    if "://" not in target:
        return find_server(target, layout=layout)
    base = normal_base_url(target)
    found = (status.record for status in list_servers(layout))
    return next((record for record in found if record.base_url == base), None)


async def _asked(
    record: ServerRecord | None, target: str, key: str | None
) -> tuple[Server, ServedEngine]:
    engine: ServedEngine = ENGINES.load(record.engine if record else "vllm")()
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
        api_key=key if record.has_api_key else None,
        owned=False,
    ), engine


class ServedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A name that a server answers to, and the folder behind it as the server sees it."""

    id: str
    root: str | None = None
    parent: str | None = None


class _Models(msgspec.Struct):
    data: list[ServedModel]


async def served_models(server: Server, engine: ServedEngine) -> tuple[ServedModel, ...]:
    """What the server answers as; the first is its own model. Raises WireError."""
    async with AiohttpTransport(
        server.base_url, api_key=server.api_key, timeouts=Timeouts(total=10)
    ) as transport:
        reply = await transport.send(WireRequest("GET", engine.models_path))
    if reply.status != 200:
        raise engine.wire.error_reply(reply.status, reply.body, retry_after=None)
    try:
        found = msgspec.json.decode(reply.body, type=_Models).data
    except msgspec.MsgspecError as error:
        raise MalformedResponseError("the list of models is none", why=str(error)) from error
    if not found:
        raise MalformedResponseError(f"the server at {server.base_url} lists no model")
    return tuple(found)
