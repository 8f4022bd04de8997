"""HTTP sessions with one server, whose address may have a path (http://host/prefix)."""

from __future__ import annotations

from collections.abc import Mapping

import aiohttp


def open_session(
    base_url: str, *, headers: Mapping[str, str] | None = None
) -> aiohttp.ClientSession:
    """A session whose requests take paths as `below` gives them; close it."""
    return aiohttp.ClientSession(base_url.rstrip("/") + "/", headers=headers)


def below(path: str) -> str:
    """An engine's path (/health) such that it is looked for below the server's own."""
    return path.lstrip("/")
