"""Has vLLM's engine drop an adapter that is unloaded: ASGI middleware, loaded with --middleware.

Runs inside vLLM's process and imports nothing but the standard library. `/v1/unload_lora_adapter`
only forgets the adapter's name: the engine keeps its weights, and its place, until others drive it
out. (entrypoints/openai/models/serving.py of vLLM 0.32.0.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_PATHS = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")


class Unloading:
    """Around each load and unload, has the engine drop what vLLM's API has no name for.

    Before it, because a request that was being aborted while its adapter was unloaded has the
    engine load that again; and before the answer, so that the place is free when the client knows.
    """

    def __init__(self, app: Application) -> None:
        self._app = app
        self._changing = asyncio.Lock()  # what is being loaded has no name yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI 3."""
        if scope["type"] != "http" or not scope["path"].endswith(_PATHS):
            await self._app(scope, receive, send)
            return
        state = scope["app"].state

        async def send_later(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                await _drop_nameless(state)
            await send(message)

        async with self._changing:
            await _drop_nameless(state)
            await self._app(scope, receive, send_later)


async def _drop_nameless(state: Any) -> None:
    requests = state.openai_serving_models.lora_requests
    named = {request.lora_int_id for request in requests.values()}
    held = await state.engine_client.list_loras()  # a list, whatever vLLM's annotation says
    for number in set(held) - named:
        await state.engine_client.remove_lora(number)
