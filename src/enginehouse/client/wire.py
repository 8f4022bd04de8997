"""How one kind of server is spoken to: its dialects, its headers, and the small endpoints."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

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


# One update's payload: for all of the engine's workers, or one for each.
UpdateInfo = Mapping[str, Any] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class TransferEndpoints:
    """How another process sends weights into a running engine, in parts.

    `init` tells the engine once how they will come; `start` begins an update, `update` has it
    receive a part, and after `finish` it has the new weights whole. `world_size` asks how many
    processes receive; `read_world_size` reads the reply.
    """

    init: Callable[[Mapping[str, Any]], WireRequest]
    start: WireRequest
    update: Callable[[UpdateInfo], WireRequest]
    finish: WireRequest
    world_size: WireRequest
    read_world_size: Callable[[bytes], int]


@dataclass(frozen=True, kw_only=True)
class WeightEndpoints:
    """How the weights of a running server are replaced; requests are sent in the order given.

    `hold` ends when nothing is computed any more; what comes waits in the server until `release`.
    `doze` and `wake` do the same, but give the memory of weights and cache back in between, on
    servers that were started for it. `reload` takes a checkpoint's folder as the server sees it.
    `reset_cache` forgets what older weights computed; `is_reset` reads whether it did. `name` tells
    the server what its weights are called from now on; `read_name` reads the reply to `ask_name`.
    `transfer` is there where weights can also come from another process.
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
    transfer: TransferEndpoints | None = None


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


def _administer(method: str, path: str, body: object = None) -> WireRequest:
    encoded = None if body is None else msgspec.json.encode(body)
    return WireRequest(method, path, encoded, administers=True)


def _load(name: str, path: str) -> WireRequest:
    return _administer("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})


def _unload(name: str) -> WireRequest:
    return _administer("POST", "/v1/unload_lora_adapter", {"lora_name": name})


_PAUSE_MODES: Mapping[InFlight, str] = {"drain": "wait", "abort": "abort"}


def _pause(in_flight: InFlight) -> tuple[WireRequest, ...]:
    return (_administer("POST", f"/pause?mode={_PAUSE_MODES[in_flight]}"),)


def _sleep(in_flight: InFlight) -> tuple[WireRequest, ...]:
    mode = _PAUSE_MODES[in_flight]
    # The weights' memory must be there before they are loaded; the cache's waits until after.
    return (
        _administer("POST", f"/sleep?level=2&mode={mode}"),
        _administer("POST", "/wake_up?tags=weights"),
    )


def _reload(path: str) -> WireRequest:
    body = {"method": "reload_weights", "kwargs": {"weights_path": path}}
    return _administer("POST", "/collective_rpc", body)


def _name_weights(name: str) -> WireRequest:
    return _administer("POST", "/update_weight_version", {"new_version": name})


def _init_transfer(info: Mapping[str, Any]) -> WireRequest:
    return _administer("POST", "/init_weight_transfer_engine", {"init_info": info})


def _update_weights(info: UpdateInfo) -> WireRequest:
    plain = _plain_update(info) if isinstance(info, Mapping) else [_plain_update(i) for i in info]
    return _administer("POST", "/update_weights", {"update_info": plain})


def _plain_update(info: Mapping[str, Any]) -> Mapping[str, Any]:
    """Handles of GPU memory are no JSON: vLLM takes them as a pickle in base64."""
    if info.get("ipc_handles") is None:
        return info
    plain = {key: value for key, value in info.items() if key != "ipc_handles"}
    pickled = base64.b64encode(pickle.dumps(info["ipc_handles"]))
    return plain | {"ipc_handles_pickled": pickled.decode("ascii")}


class _Reset(msgspec.Struct):
    success: bool


class _WeightInfo(msgspec.Struct):
    weight_version: str


class _WorldSize(msgspec.Struct):
    world_size: int


_reset = msgspec.json.Decoder(_Reset)
_weight_info = msgspec.json.Decoder(_WeightInfo)
_world_size = msgspec.json.Decoder(_WorldSize)


OPENAI = Wire()
# vLLM's development endpoints (vllm/entrypoints/serve/dev and entrypoints/rl/online, read in 0.32).
VLLM_WEIGHTS = WeightEndpoints(
    hold=_pause,
    release=(_administer("POST", "/resume"),),
    doze=_sleep,
    wake=(_administer("POST", "/wake_up?tags=kv_cache"),),
    reload=_reload,
    reset_cache=_administer("POST", "/reset_prefix_cache"),
    is_reset=lambda body: decode_reply(_reset, body).success,
    name=_name_weights,
    ask_name=_administer("GET", "/weight_info"),
    read_name=lambda body: decode_reply(_weight_info, body).weight_version,
    transfer=TransferEndpoints(
        init=_init_transfer,
        start=_administer("POST", "/start_weight_update"),
        update=_update_weights,
        finish=_administer("POST", "/finish_weight_update"),
        world_size=_administer("GET", "/get_world_size"),
        read_world_size=lambda body: decode_reply(_world_size, body).world_size,
    ),
)
VLLM = Wire(
    tokenizing=Tokenizing(path="/tokenize", encode=encode_tokenize, decode=decode_tokenize),
    adapters=AdapterEndpoints(load=_load, unload=_unload),
    weights=VLLM_WEIGHTS,
)
