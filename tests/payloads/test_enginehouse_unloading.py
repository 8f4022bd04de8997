"""vLLM's engine drops an adapter when its API does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from enginehouse.payloads.middleware.enginehouse_unloading import Unloading


class Server:
    """vLLM's application, as far as the middleware sees it; `done` is what happened, in order."""

    def __init__(self, *, held: set[int]) -> None:
        self.done: list[Any] = []
        self.names = {
            name: SimpleNamespace(lora_int_id=number) for number, name in enumerate("ab", start=1)
        }
        self.held = held
        models = SimpleNamespace(lora_requests=self.names)
        self.state = SimpleNamespace(openai_serving_models=models, engine_client=self)

    async def list_loras(self) -> list[int]:
        """What the engine holds."""
        return list(self.held)

    async def remove_lora(self, number: int) -> None:
        """Drop one."""
        self.held.remove(number)
        self.done.append(f"dropped {number}")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Unload what the query names, if it is there; or load it as the third."""
        self.done.append("asked")
        if scope["path"].endswith("/load_lora_adapter"):
            self.held.add(3)
            self.names[scope["query"]] = SimpleNamespace(lora_int_id=3)
        found = self.names.pop(scope["query"], None) if "unload" in scope["path"] else True
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
    done = await Server(held={1, 2}).post("/v1/unload_lora_adapter", "b")
    assert done == ["asked", "dropped 2", 200, "body"]


async def test_what_is_not_loaded_is_not_dropped():
    """The refusal is passed on."""
    done = await Server(held={1, 2}).post("/v1/unload_lora_adapter", "c")
    assert done == ["asked", 404, "body"]


async def test_what_came_back_is_dropped_before_the_next_is_loaded():
    """A request that was being aborted had the engine load it again."""
    server = Server(held={1, 2, 9})
    assert await server.post("/v1/load_lora_adapter", "c") == ["dropped 9", "asked", 200, "body"]
    assert server.held == {1, 2, 3}


async def test_other_requests_pass():
    """Nothing is looked at."""
    server = Server(held={1, 2, 9})
    assert await server.post("/v1/completions", "b") == ["asked", 200, "body"]
