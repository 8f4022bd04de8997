"""JSON that a stranger sent, read so that nothing in it can surprise what comes later."""

from __future__ import annotations

import json
import re
from typing import Any

from hf_server.errors import refused

DEEPEST = 64  # of what is nested: chat templates, xgrammar and json itself recurse
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_ESCAPED = re.compile(rb"\\u[dD][89a-fA-F]")


def parse(body: bytes | str) -> Any:
    """The value. Raises ApiError (400) if it is not text, not JSON, or nested too deeply."""
    try:
        value = json.loads(body)
    except ValueError as error:
        raise refused(f"the body is not JSON: {error}") from error
    except RecursionError:
        raise _too_deep() from None
    _check_depth(value)
    raw = body.encode(errors="surrogatepass") if isinstance(body, str) else body
    if _ESCAPED.search(raw) and _SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        raise refused("the body has half of a surrogate pair, which stands for no character")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        below: list[Any] = []
        for one in level:
            parts = one.values() if isinstance(one, dict) else one
            below += [part for part in parts if isinstance(part, dict | list)] if _has(one) else []
        if not below:
            return
        level = below
    raise _too_deep()


def _has(value: Any) -> bool:
    return isinstance(value, dict | list)


def _too_deep() -> Exception:
    return refused(f"the body is nested more than {DEEPEST} levels deep")
