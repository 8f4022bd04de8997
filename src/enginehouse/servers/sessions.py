"""HTTP sessions with one server, whose address may have a path (http://host/prefix)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import aiohttp


def open_session(
    base_url: str, *, headers: Mapping[str, str] | None = None
) -> aiohttp.ClientSession:
    """A session whose requests take paths from `below`; the caller closes it."""
    return aiohttp.ClientSession(base_url.rstrip("/") + "/", headers=headers)


def below(path: str) -> str:
    """An engine's path (/health) relative to the server's own."""
    return path.lstrip("/")


def one_token_request(model: str) -> dict[str, Any]:
    """The body of the smallest request that makes an engine compute."""
    return {"model": model, "prompt": "1", "max_tokens": 1, "temperature": 0.0}
