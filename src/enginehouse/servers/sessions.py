"""HTTP sessions with one server, whose address may have a path (http://host/prefix)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec

from enginehouse.client.transport import WireRequest
from enginehouse.core.sampler import Capability
from enginehouse.engines.base import ServedEngine


def open_session(
    base_url: str, *, headers: Mapping[str, str] | None = None
) -> aiohttp.ClientSession:
    """A session whose requests take paths from `below`; the caller closes it."""
    return aiohttp.ClientSession(base_url.rstrip("/") + "/", headers=headers)


def below(path: str) -> str:
    """An engine's path (/health) relative to the server's own."""
    return path.lstrip("/")


def one_token_request(engine: ServedEngine, model: str) -> WireRequest:
    """The smallest request that makes an engine compute: a text, or a chat if it takes no text."""
    supports = engine.capabilities(None).supports
    body: dict[str, Any] = {"model": model, "max_tokens": 1, "temperature": 0.0}
    takes_text = Capability.TEXT in supports or Capability.CHAT not in supports
    usual = "/v1/completions" if takes_text else "/v1/chat/completions"
    path = engine.endpoints.canary or usual
    if path.endswith("/chat/completions"):
        body["messages"] = [{"role": "user", "content": "1"}]
    else:
        body["prompt"] = "1"
    return WireRequest("POST", path, msgspec.json.encode(body))
