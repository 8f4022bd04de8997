"""The endpoints beside generation: health, models, metrics, tokens, adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from enginehouse.testing.fake_engine import tokenizer
from enginehouse.testing.fake_engine.errors import ApiError
from enginehouse.testing.fake_engine.generation import ENGINE, check_vocabulary, render
from enginehouse.testing.fake_engine.model import weights_digest
from enginehouse.testing.fake_engine.requests import ChatMessage, parse


class _Tokenize(msgspec.Struct):
    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None


class _Detokenize(msgspec.Struct):
    tokens: list[int]
    model: str | None = None


class _Adapter(msgspec.Struct):
    lora_name: str
    lora_path: str = ""
    load_inplace: bool = False


async def health(_: web.Request) -> web.Response:
    """GET /health: an empty 200."""
    return web.Response()


async def version(request: web.Request) -> web.Response:
    """GET /version."""
    return web.json_response({"version": request.app[ENGINE].version})


async def models(request: web.Request) -> web.Response:
    """GET /v1/models: the served names, then the adapters."""
    engine = request.app[ENGINE]
    base = {"object": "model", "created": engine.created, "owned_by": "vllm", "permission": []}
    cards: list[dict[str, Any]] = [
        base
        | {
            "id": name,
            "root": engine.arguments.model,
            "parent": None,
            "max_model_len": engine.max_model_len,
        }
        for name in engine.names
    ]
    cards += [
        base
        | {
            "id": name,
            "root": engine.adapter_paths.get(name, name),
            "parent": engine.names[0],
            "max_model_len": None,
        }
        for name in engine.adapters
    ]
    return web.json_response({"object": "list", "data": cards})


async def metrics(request: web.Request) -> web.Response:
    """GET /metrics, in Prometheus' text format."""
    return web.Response(text=request.app[ENGINE].metrics(), content_type="text/plain")


async def tokenize(request: web.Request) -> web.Response:
    """POST /tokenize, of a prompt or of messages."""
    asked: _Tokenize = parse(await request.read(), _Tokenize)
    engine = request.app[ENGINE]
    engine.weights_of(asked.model)
    ids = tokenizer.encode(render(asked.messages) if asked.messages else asked.prompt or "")
    return web.json_response(
        {"count": len(ids), "max_model_len": engine.max_model_len, "tokens": ids}
    )


async def detokenize(request: web.Request) -> web.Response:
    """POST /detokenize."""
    asked: _Detokenize = parse(await request.read(), _Detokenize)
    request.app[ENGINE].weights_of(asked.model)
    check_vocabulary(asked.tokens)
    return web.json_response({"prompt": tokenizer.decode(asked.tokens, specials=True)})


async def load_adapter(request: web.Request) -> web.Response:
    """POST /v1/load_lora_adapter."""
    asked: _Adapter = parse(await request.read(), _Adapter)
    engine = request.app[ENGINE]
    name, path = asked.lora_name, asked.lora_path
    if not name or not path:
        raise ApiError("Both 'lora_name' and 'lora_path' must be provided.", kind=_USER)
    if name in engine.names:
        raise ApiError(f"The lora adapter '{name}' conflicts with a served base model.", kind=_USER)
    if name in engine.adapters and not asked.load_inplace:
        raise ApiError(
            f"The lora adapter '{name}' has already been loaded. If you want to load the adapter "
            "in place, set 'load_inplace' to True.",
            kind=_USER,
        )
    if not engine.arguments.enable_lora:
        raise ApiError(
            "Call to add_lora method failed: Worker failed with error 'LoRA is not enabled. Use "
            "--enable-lora to enable LoRA.', please check the stack trace above for the root cause",
            status=500,
            kind="InternalServerError",
        )
    if not (Path(path) / "adapter_config.json").is_file():
        raise ApiError(
            f"Loading lora {name} failed: No adapter found for {path}",
            status=404,
            kind="NotFoundError",
        )
    rank = json.loads((Path(path) / "adapter_config.json").read_bytes()).get("r", 0)
    if rank > engine.arguments.max_lora_rank:
        raise ApiError(
            f"Call to add_lora method failed: Worker failed with error 'LoRA rank {rank} is "
            f"greater than max_lora_rank {engine.arguments.max_lora_rank}.', please check the "
            "stack trace above for the root cause",
            status=500,
            kind="InternalServerError",
        )
    engine.adapters[name] = weights_digest(path)
    engine.lost_adapters.discard(name)
    engine.adapter_paths[name] = path
    return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")


async def unload_adapter(request: web.Request) -> web.Response:
    """POST /v1/unload_lora_adapter."""
    name = parse(await request.read(), _Adapter).lora_name
    engine = request.app[ENGINE]
    engine.adapter_paths.pop(name, None)
    engine.lost_adapters.discard(name)
    if engine.adapters.pop(name, None) is None:
        raise ApiError(
            f"The lora adapter '{name}' cannot be found.", status=404, kind="NotFoundError"
        )
    return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")


_USER = "InvalidUserInput"
