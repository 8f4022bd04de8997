"""Calls in, answers out, in order."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from trainer.connection import Connection
from trainer.data import LossResult
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
        return Reply(failure=_failure(error))
    except OSError as error:
        LOG.warning("%s: %s", _name(call), error)
        where = f" ({error.filename})" if error.filename else ""
        message = f"the trainer's {_name(call)} met an error of the system"
        why = f"{error.strerror or error}{where}"
        return Reply(failure=Failure(message=message, category="server", why=why))
    except Exception as error:
        LOG.exception("%s failed", _name(call))
        message = f"the trainer's {_name(call)} failed"
        why = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        return Reply(failure=Failure(message=message, category="server", why=why))


def _name(call: Call) -> str:
    return str(call.__struct_config__.tag)


def _value(engine: Engine, call: Call) -> Any:
    """The engine's methods are called as the calls are, and take their fields."""
    method = getattr(engine, _name(call))
    value = method(**{name: getattr(call, name) for name in call.__struct_fields__})
    return [_outcome(result) for result in value] if isinstance(call, Compute) else value


def _outcome(result: LossResult | RequestError) -> Outcome:
    if isinstance(result, RequestError):
        return Outcome(failure=_failure(result))
    return Outcome(result=result)


def _failure(error: RequestError) -> Failure:
    return Failure(message=str(error), category="user")
