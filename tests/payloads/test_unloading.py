"""vLLM's engine drops an adapter when its API does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from enginehouse.payloads.middleware.enginehouse_unloading import Unloading


class Server:
    """vLLM's application, as far as the middleware sees it; `done` is what happened, in order."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.adapters = {
            name: SimpleNamespace(lora_int_id=number) for number, name in enumerate("ab", start=1)
        }
        models = SimpleNamespace(lora_requests=self.adapters)
        engine = SimpleNamespace(remove_lora=self._remove)
        self.state = SimpleNamespace(openai_serving_models=models, engine_client=engine)

    async def _remove(self, number: int) -> None:
        self.done.append(f"dropped {number}")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Unload what the query names, if it is there."""
        found = self.adapters.pop(scope["query"], None)
        await send({"type": "http.response.start", "status": 200 if found else 404})
        await send({"type": "http.response.body", "body": b""})

    async def post(self, path: str, name: str) -> list[Any]:
        """What was done until the answer was there."""

        async def send(message: Any) -> None:
            self.done.append(message.get("status", "body"))

        scope = {"type": "http", "path": path, "query": name, "app": self}
        await Unloading(self)(scope, None, send)  # type: ignore[arg-type]
        return self.done


async def test_the_engine_drops_what_is_unloaded():
    """Before the answer, so that the next adapter finds its place free."""
    assert await Server().post("/v1/unload_lora_adapter", "b") == ["dropped 2", 200, "body"]


async def test_what_is_not_loaded_is_not_dropped():
    """The refusal is passed on."""
    assert await Server().post("/v1/unload_lora_adapter", "c") == [404, "body"]


async def test_other_requests_pass():
    """Also those after which an adapter is gone for another reason."""
    assert await Server().post("/v1/load_lora_adapter", "b") == [200, "body"]
