"""Has vLLM's engine drop an adapter that is unloaded: ASGI middleware, loaded with --middleware.

Runs inside vLLM's process and imports nothing but the standard library. `/v1/unload_lora_adapter`
only forgets the adapter's name: the engine keeps its weights, and its place, until others drive it
out. (entrypoints/openai/models/serving.py of vLLM 0.32.0.)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_UNLOAD = "/v1/unload_lora_adapter"


class Unloading:
    """Answers a request to unload an adapter once the engine has dropped it, too."""

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI 3."""
        if scope["type"] != "http" or not scope["path"].endswith(_UNLOAD):
            await self._app(scope, receive, send)
            return
        state = scope["app"].state
        before = _ids(state)

        async def send_later(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                now = _ids(state)
                for name in before.keys() - now.keys():
                    await state.engine_client.remove_lora(before[name])
            await send(message)

        await self._app(scope, receive, send_later)


def _ids(state: Any) -> dict[str, int]:
    requests = state.openai_serving_models.lora_requests
    return {name: request.lora_int_id for name, request in requests.items()}
