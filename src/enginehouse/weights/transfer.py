"""What a server must be started with so that a trainer can send it weights."""

from __future__ import annotations

from enginehouse.client.transport import WireRequest
from enginehouse.client.wire import TransferEndpoints
from enginehouse.core.errors import ServerFaultError, UnsupportedError, WeightsError
from enginehouse.engines.base import Engine
from enginehouse.servers.endpoint import Server
from enginehouse.weights.replacement import NOT_CONFIGURED, Send

_CONFIGURED = (
    "serve it with --enable-weight-swap and --extra-args '--weight-transfer-config.backend ipc' "
    "(or nccl)"
)
# By a part of vLLM 0.32's message.
_FIXES = {
    NOT_CONFIGURED: _CONFIGURED,
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "serve it with --env VLLM_ALLOW_INSECURE_SERIALIZATION=1: "
    "IPC handles come as a pickle, which may run code there",
}
_FLAGS = ("--weight-transfer-config", "--weight_transfer_config", "--config")


def transfer_endpoints(server: Server, engine: Engine) -> TransferEndpoints:
    """How weights are sent to a server.

    Raises UnsupportedError for an engine without that ability, and WeightsError for a server whose
    command line is known and does not enable it: the trainer's NCCL would wait forever for a server
    that refuses.
    """
    weights = engine.wire.weights
    endpoints = weights.transfer if weights is not None else None
    if endpoints is None:
        raise UnsupportedError(f"a {engine.name} server cannot be sent weights", fix="use vLLM")
    if server.command and not any(word.startswith(_FLAGS) for word in server.command):
        raise _not_started_for(f"its command line has no {_FLAGS[0]}", fix=_CONFIGURED)
    return endpoints


async def ask_about_transfer(send: Send, request: WireRequest) -> bytes:
    """Send one of the transfer's requests.

    Raises WireError, and WeightsError, saying what to do, if the server was not started for it.
    """
    try:
        return await send(request)
    except ServerFaultError as error:
        for said, fix in _FIXES.items():
            if said in error.message:
                raise _not_started_for(error.message, fix=fix) from error
        raise


def _not_started_for(why: str, *, fix: str) -> WeightsError:
    return WeightsError(
        "the server was not started to be sent weights", why=why, fix=fix, kind="unsupported"
    )
