"""Calls in, answers out, in order."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trainer.connection import Connection
from trainer.data import LossRequest, LossResult
from trainer.errors import RequestError
from trainer.messages import Call, Compute, Failure, Outcome, Reply, decode_call, encode

if TYPE_CHECKING:
    from trainer.engine import Engine

LOG = logging.getLogger("trainer")


def serve(engine: Engine, connection: Connection) -> None:
    """Say what the engine can do, then answer calls until the other end is closed."""
    connection.send(encode(Reply(value=engine.info)))
    while True:
        call = decode_call(connection.receive())
        connection.send(encode(answer(engine, call)))


def answer(engine: Engine, call: Call) -> Reply:
    """What a call gives. Whatever it fails of, the next one is answered."""
    try:
        return Reply(value=_value(engine, call))
    except RequestError as error:
        return Reply(failure=Failure(message=str(error)))
    except Exception as error:  # noqa: BLE001 (it is logged, and told)
        return Reply(failure=_failure(error, _name(call)))


def _name(call: Call) -> str:
    return str(call.__struct_config__.tag)


def _value(engine: Engine, call: Call) -> Any:
    """The engine's methods are called as the calls are, and take their fields."""
    if isinstance(call, Compute):
        return _outcomes(engine, call.requests)
    method = getattr(engine, _name(call))
    return method(**{name: getattr(call, name) for name in call.__struct_fields__})


def _outcomes(engine: Engine, requests: Sequence[LossRequest]) -> list[Outcome]:
    """Computed together; should that fail (for memory, say), one by one, as one may be to blame."""
    try:
        return [_outcome(result) for result in engine.compute(requests)]
    except Exception as error:  # noqa: BLE001 (it is logged, and told)
        failure = _failure(error, "compute")
    if len(requests) == 1:
        return [Outcome(failure=failure)]
    return [outcome for request in requests for outcome in _outcomes(engine, [request])]


def _outcome(result: LossResult | RequestError) -> Outcome:
    if isinstance(result, RequestError):
        return Outcome(failure=Failure(message=str(result)))
    return Outcome(result=result)


def _failure(error: Exception, name: str) -> Failure:
    """Log an error that no request is to blame for; end the process if its GPU is of no use now."""
    if isinstance(error, OSError):
        LOG.warning("%s: %s", name, error)
        place = f" ({error.filename})" if error.filename else ""
        why = f"{error.strerror or error}{place}"
    else:
        LOG.error("%s failed", name, exc_info=error)
        why = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    if why.partition(": ")[2].startswith("CUDA error"):  # every later call would fail as well
        raise SystemExit(1)
    return Failure(message=f"the trainer's {name} failed", category="server", why=why)
