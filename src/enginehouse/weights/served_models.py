"""What a server lists: its own model, and adapters."""

from __future__ import annotations

import msgspec

from enginehouse.client.transport import Timeouts, WireRequest, open_transport
from enginehouse.core.errors import MalformedResponseError
from enginehouse.engines.base import ServedEngine
from enginehouse.servers.endpoint import Server


class ServedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A name that a server answers to, and the folder behind it as the server sees it.

    `max_model_len` is the longest prompt and answer together, in tokens, where the server says it.
    """

    id: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[ServedModel]


async def served_models(server: Server, engine: ServedEngine) -> tuple[ServedModel, ...]:
    """The models that requests may name; the first is the server's own. Raises WireError."""
    path = engine.wire.models_path
    assert path is not None, "a server of our own lists its models"
    async with open_transport(
        server.base_url, api_key=server.api_key, timeouts=Timeouts(total=10)
    ) as transport:
        reply = await transport.send(WireRequest("GET", path))
    if reply.status != 200:
        raise engine.wire.error_reply(reply.status, reply.body, retry_after=None)
    return decode_served_models(reply.body)


def decode_served_models(body: bytes) -> tuple[ServedModel, ...]:
    """The models in a reply of GET /v1/models, at least one. Raises MalformedResponseError."""
    try:
        models = msgspec.json.decode(body, type=_Models).data
    except (msgspec.MsgspecError, RecursionError) as error:
        raise MalformedResponseError("the list of models is invalid", why=str(error)) from error
    if not models:
        raise MalformedResponseError("the server lists no model")
    return tuple(models)
