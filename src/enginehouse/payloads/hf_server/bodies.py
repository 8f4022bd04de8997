"""JSON bodies from strangers: parsed and validated so that nothing in them surprises later code."""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from hf_server.errors import ApiError, refused

DEEPEST = 64  # levels of nesting: chat templates, xgrammar and json itself recurse
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_ESCAPED = re.compile(rb"\\u[dD][89a-fA-F]")


class Body(BaseModel):
    """The fields of a request; an unknown one is refused, never ignored. null means absent."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


AnyBody = TypeVar("AnyBody", bound=Body)


def validate(body: Any, kind: type[AnyBody]) -> AnyBody:
    """The body as a `kind`. Raises ApiError (400), naming the field that is at fault."""
    if not isinstance(body, dict):
        raise refused("the body must be a JSON object")
    given = {name: value for name, value in body.items() if value is not None}
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = str(first["loc"][0]) if first["loc"] else None
        if first["type"] == "extra_forbidden":
            raise refused(
                f"unknown or unsupported: {field}; this server ignores no field", param=field
            ) from None
        raise refused(f"{field}: {first['msg']}", param=field) from None


def parse(body: bytes | str) -> Any:
    """The value. Raises ApiError (400) if it is not text, not JSON, or nested too deeply."""
    try:
        value = json.loads(body)
    except ValueError as error:
        raise refused(f"the body is not JSON: {error}") from error
    except RecursionError:
        raise _too_deep() from None
    level = [value]
    for _ in range(DEEPEST):
        parents = [one for one in level if isinstance(one, dict | list)]
        level = [
            part for one in parents for part in (one.values() if isinstance(one, dict) else one)
        ]
    if any(isinstance(one, dict | list) for one in level):
        raise _too_deep()
    raw = body.encode(errors="surrogatepass") if isinstance(body, str) else body
    if _ESCAPED.search(raw) and _SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        raise refused("the body has half of a surrogate pair, which stands for no character")
    return value


def _too_deep() -> ApiError:
    return refused(f"the body is nested more than {DEEPEST} levels deep")
