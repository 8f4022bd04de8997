"""How one kind of server is spoken to: its dialects, its headers, and the small endpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from enginehouse.client.transport import WireRequest, bearer
from enginehouse.client.unchecked import Unchecked
from enginehouse.core.errors import WireError
from enginehouse.dialects import openai_chat, openai_completions
from enginehouse.dialects.base import Dialect
from enginehouse.dialects.openai_errors import error_reply
from enginehouse.dialects.openai_replies import (
    decode_models,
    decode_reply,
    decode_tokenize,
    encode_tokenize,
)


class ErrorReply(Protocol):
    """Reads an error reply."""

    def __call__(self, status: int, body: bytes, *, retry_after: float | None) -> WireError:
        """The error that a reply with a status of 300 or above stands for."""
        ...


class EncodeTokenize(Protocol):
    """Writes a request for token ids."""

    def __call__(self, text: str, *, model: str, add_special_tokens: bool) -> bytes:
        """The request's body."""
        ...


@dataclass(frozen=True, kw_only=True)
class Tokenizing:
    """An endpoint that turns text into token ids."""

    path: str
    encode: EncodeTokenize
    decode: Callable[[bytes], tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class AdapterEndpoints:
    """How LoRA adapters are loaded and unloaded while the server runs.

    `load` takes the adapter's name and its folder as the server sees it; `unload` the name. `model`
    makes, of the base model's name and the adapter's, what requests name to be answered by it.
    """

    load: Callable[[str, str], WireRequest]
    unload: Callable[[str], WireRequest]
    model: Callable[[str, str], str] = lambda _, adapter: adapter


# What happens to the requests under way when the weights change: they end, or are given up.
InFlight = Literal["drain", "abort"]


@dataclass(frozen=True, kw_only=True)
class WeightEndpoints:
    """How the weights of a running server are replaced; requests are sent in the order given.

    `hold` ends when nothing is computed any more; what comes waits in the server until `release`.
    `doze` and `wake` do the same, but give the memory of weights and cache back in between, on
    servers that were started for it. `reload` takes a checkpoint's folder as the server sees it.
    `reset_cache` forgets what older weights computed; `is_reset` reads whether it did. `name` tells
    the server what its weights are called from now on; `read_name` reads the reply to `ask_name`.
    """

    hold: Callable[[InFlight], Sequence[WireRequest]]
    release: Sequence[WireRequest]
    doze: Callable[[InFlight], Sequence[WireRequest]]
    wake: Sequence[WireRequest]
    reload: Callable[[str], WireRequest]
    reset_cache: WireRequest
    is_reset: Callable[[bytes], bool]
    name: Callable[[str], WireRequest]
    ask_name: WireRequest
    read_name: Callable[[bytes], str]


@dataclass(frozen=True, kw_only=True)
class Wire:
    """A kind of server, on the wire; None stands for what it does not have.

    `method` is that of generation. `authorize` makes the headers that carry an API key.
    `reply_error` finds the error in a reply whose status is 200, if there may be one.
    `decode_models` reads the served names. `rate_limited`: the headers of its replies tell how much
    may still be asked. `unchecked` reads, from the reply with the models, what the server would let
    pass. `closes_streams`: it closes a stream's connection without having said so.
    """

    chat: Dialect | None = openai_chat
    completions: Dialect | None = openai_completions
    method: str = "POST"
    error_reply: ErrorReply = error_reply
    reply_error: Callable[[bytes], WireError | None] | None = None
    authorize: Callable[[str], Mapping[str, str]] = bearer
    models_path: str | None = "/v1/models"
    decode_models: Callable[[bytes], tuple[str, ...]] = decode_models
    tokenizing: Tokenizing | None = None
    adapters: AdapterEndpoints | None = None
    weights: WeightEndpoints | None = None
    rate_limited: bool = False
    unchecked: Callable[[bytes], Unchecked] | None = None
    closes_streams: bool = False


def _load(name: str, path: str) -> WireRequest:
    body = msgspec.json.encode({"lora_name": name, "lora_path": path})
    return WireRequest("POST", "/v1/load_lora_adapter", body)


def _unload(name: str) -> WireRequest:
    body = msgspec.json.encode({"lora_name": name})
    return WireRequest("POST", "/v1/unload_lora_adapter", body)


_PAUSE_MODES: Mapping[InFlight, str] = {"drain": "wait", "abort": "abort"}


def _pause(in_flight: InFlight) -> tuple[WireRequest, ...]:
    return (WireRequest("POST", f"/pause?mode={_PAUSE_MODES[in_flight]}"),)


def _sleep(in_flight: InFlight) -> tuple[WireRequest, ...]:
    mode = _PAUSE_MODES[in_flight]
    # The weights' memory must be there before they are loaded; the cache's waits until after.
    return (
        WireRequest("POST", f"/sleep?level=2&mode={mode}"),
        WireRequest("POST", "/wake_up?tags=weights"),
    )


def _reload(path: str) -> WireRequest:
    body = {"method": "reload_weights", "kwargs": {"weights_path": path}}
    return WireRequest("POST", "/collective_rpc", msgspec.json.encode(body))


def _name_weights(name: str) -> WireRequest:
    body = msgspec.json.encode({"new_version": name})
    return WireRequest("POST", "/update_weight_version", body)


class _Reset(msgspec.Struct):
    success: bool


class _WeightInfo(msgspec.Struct):
    weight_version: str


_reset = msgspec.json.Decoder(_Reset)
_weight_info = msgspec.json.Decoder(_WeightInfo)


OPENAI = Wire()
# vLLM's development endpoints (vllm/entrypoints/serve/dev and entrypoints/rl/online, read in 0.32).
VLLM_WEIGHTS = WeightEndpoints(
    hold=_pause,
    release=(WireRequest("POST", "/resume"),),
    doze=_sleep,
    wake=(WireRequest("POST", "/wake_up?tags=kv_cache"),),
    reload=_reload,
    reset_cache=WireRequest("POST", "/reset_prefix_cache"),
    is_reset=lambda body: decode_reply(_reset, body).success,
    name=_name_weights,
    ask_name=WireRequest("GET", "/weight_info"),
    read_name=lambda body: decode_reply(_weight_info, body).weight_version,
)
VLLM = Wire(
    tokenizing=Tokenizing(path="/tokenize", encode=encode_tokenize, decode=decode_tokenize),
    adapters=AdapterEndpoints(load=_load, unload=_unload),
    weights=VLLM_WEIGHTS,
)
