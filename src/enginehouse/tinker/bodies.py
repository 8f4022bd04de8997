"""Reading the bodies of requests: strict, and off the event loop where they are large."""

from __future__ import annotations

from asyncio import to_thread
from typing import Any, Final, TypeVar

import orjson
from pydantic import ValidationError
from starlette.requests import Request

from enginehouse.core.errors import TinkerError
from enginehouse.core.strict_model import StrictModel, explain

LARGE: Final = 64_000
"""Bytes that take about a millisecond to decode; what is larger is decoded in a thread."""

Parsed = TypeVar("Parsed", bound=StrictModel)


async def read_json(request: Request, kind: type[Parsed]) -> Parsed:
    """The request's body as `kind`.

    Raises TinkerError (400) naming every field that is unknown, missing or wrong.
    """
    return await parse_json(await request.body(), kind)


async def parse_json(body: bytes, kind: type[Parsed]) -> Parsed:
    """As `read_json`, of a body that has been read."""
    if len(body) < LARGE:
        return _parse(body, kind)
    return await to_thread(_parse, body, kind)


async def load_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body, whatever its fields. Raises TinkerError (400)."""
    try:
        loaded = orjson.loads(body) if len(body) < LARGE else await to_thread(orjson.loads, body)
    except orjson.JSONDecodeError as error:
        raise TinkerError(f"the body is not JSON: {error}") from None
    if not isinstance(loaded, dict):
        raise TinkerError("the body is not a JSON object")
    return loaded


def _parse(body: bytes, kind: type[Parsed]) -> Parsed:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        if any(problem["type"] == "json_invalid" for problem in error.errors()):
            raise TinkerError(f"the body is not JSON: {error.errors()[0]['msg']}") from None
        problems = "; ".join(explain(error, kind))
        raise TinkerError(
            f"the request was not understood: {problems}",
            fix="this service implements the API of the tinker SDK 0.38.0",
        ) from None
