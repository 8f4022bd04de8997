"""Reading the bodies of requests: strict, and off the event loop where they are large."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import orjson
from pydantic import ValidationError
from starlette.requests import Request

from enginehouse.core.errors import TinkerError
from enginehouse.core.strict_model import StrictModel, explain

_LARGE: Final = 64_000  # bytes that take about a millisecond to decode
# One thread for all: a decoder holds the interpreter's lock for tens of milliseconds at a time, and
# the event loop, which gives the lock up in each of its system calls, waits for every thread that
# wants it. Several decoders would be no faster together, and heartbeats would wait for seconds.
_DECODER: Final = ThreadPoolExecutor(1, thread_name_prefix="tinker-decoder")

Parsed = TypeVar("Parsed", bound=StrictModel)
Result = TypeVar("Result")


async def decoded(body: bytes, decode: Callable[[bytes], Result]) -> Result:
    """What `decode` makes of the body, in a thread if it is large."""
    if len(body) < _LARGE:
        return decode(body)
    return await asyncio.get_running_loop().run_in_executor(_DECODER, decode, body)


async def read_json(request: Request, kind: type[Parsed]) -> Parsed:
    """The request's body as `kind`.

    Raises TinkerError (400) naming every field that is unknown, missing or wrong.
    """
    return await parse_json(await request.body(), kind)


async def parse_json(body: bytes, kind: type[Parsed]) -> Parsed:
    """As `read_json`, of a body that has been read."""
    return await decoded(body, lambda content: _parse(content, kind))


async def load_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body, whatever its fields. Raises TinkerError (400)."""
    try:
        loaded = await decoded(body, orjson.loads)
    except orjson.JSONDecodeError as error:
        raise TinkerError(f"the body is not JSON: {error}") from None
    if not isinstance(loaded, dict):
        raise TinkerError("the body is not a JSON object")
    return loaded


def check_object(body: Mapping[str, Any], kind: type[Parsed]) -> Parsed:
    """What `load_object` gave, as `kind`. Raises TinkerError (400)."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise _refused(error, kind) from None


def read_query(request: Request, kind: type[Parsed]) -> Parsed:
    """The parameters in the request's URL, as `kind`. Raises TinkerError (400)."""
    return check_object(dict(request.query_params), kind)


def _parse(body: bytes, kind: type[Parsed]) -> Parsed:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _refused(error, kind) from None


def _refused(error: ValidationError, kind: type[Parsed]) -> TinkerError:
    if any(problem["type"] == "json_invalid" for problem in error.errors()):
        return TinkerError(f"the body is not JSON: {error.errors()[0]['msg']}")
    return TinkerError(
        f"the request was not understood: {'; '.join(explain(error, kind))}",
        fix="this service implements the API of the tinker SDK 0.38.0",
    )
