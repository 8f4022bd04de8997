"""What a server must be started with so that a trainer can send it weights."""

from __future__ import annotations

from enginehouse.client.transport import WireRequest
from enginehouse.client.wire import TransferEndpoints
from enginehouse.core.errors import ServerFaultError, UnsupportedError, WeightsError
from enginehouse.engines.base import Engine
from enginehouse.engines.registry import engines_that
from enginehouse.servers.endpoint import Server
from enginehouse.weights.replacement import Send


def transfer_endpoints(server: Server, engine: Engine) -> TransferEndpoints:
    """How weights are sent to a server.

    Raises UnsupportedError for an engine without that ability, and WeightsError for a server whose
    command line is known and does not enable it: the trainer's NCCL would wait forever for a server
    that refuses.
    """
    endpoints = _endpoints_of(engine)
    if endpoints is None:
        able = engines_that(lambda other: _endpoints_of(other) is not None)
        raise UnsupportedError(
            f"a {engine.name} server cannot be sent weights",
            fix=f"use an engine that receives weights: {', '.join(able)}",
        )
    if server.command and not any(word.startswith(endpoints.flags) for word in server.command):
        raise _not_started_for(
            f"its command line has no {endpoints.flags[0]}", fix=endpoints.enabling
        )
    return endpoints


def _endpoints_of(engine: Engine) -> TransferEndpoints | None:
    weights = engine.wire.weights
    return weights.transfer if weights is not None else None


async def ask_about_transfer(
    send: Send, request: WireRequest, *, endpoints: TransferEndpoints
) -> bytes:
    """Send one of the transfer's requests.

    Raises WireError, and WeightsError, saying what to do, if the server was not started for it.
    """
    try:
        return await send(request)
    except ServerFaultError as error:
        for part, fix in endpoints.refusals.items():
            if part in error.message:
                raise _not_started_for(error.message, fix=fix) from error
        raise


def _not_started_for(why: str, *, fix: str) -> WeightsError:
    return WeightsError(
        "the server was not started to be sent weights", why=why, fix=fix, kind="unsupported"
    )
