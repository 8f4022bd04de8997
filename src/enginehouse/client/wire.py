"""How to talk to one kind of server: its dialects, its headers, and the small endpoints."""

from __future__ import annotations

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
    decode_tokenize,
    encode_tokenize,
)


class ErrorReply(Protocol):
    """Reads an error reply."""

    def __call__(self, status: int, body: bytes, *, retry_after: float | None) -> WireError:
        """The error for a reply with a status of 300 or above."""
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
    takes the base model's name and the adapter's, and returns what requests name to use it.
    """

    load: Callable[[str, str], WireRequest]
    unload: Callable[[str], WireRequest]
    model: Callable[[str, str], str] = lambda _, adapter: adapter


# What happens to requests in flight when the weights change: they finish, or are aborted.
InFlight = Literal["drain", "abort"]


# One update's payload: for all of the engine's workers, or one for each.
UpdateInfo = Mapping[str, Any] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class TransferEndpoints:
    """How another process sends weights into a running engine, in parts.

    `init` tells the engine once how they will arrive; `start` begins an update, `update` has it
    receive a part, and after `finish` the new weights are complete. `world_size` asks how many
    processes receive; `read_world_size` reads the reply.

    A command line with one of `flags` starts a server that can do it; `enabling` says how.
    `refusals` maps a part of the error of a server that was started without to what to do;
    `not_configured` is the part that says that no update was ever possible.
    """

    init: Callable[[Mapping[str, Any]], WireRequest]
    start: WireRequest
    update: Callable[[UpdateInfo], WireRequest]
    finish: WireRequest
    world_size: WireRequest
    read_world_size: Callable[[bytes], int]
    flags: tuple[str, ...]
    enabling: str
    refusals: Mapping[str, str]
    not_configured: str


@dataclass(frozen=True, kw_only=True)
class WeightEndpoints:
    """How the weights of a running server are replaced; requests are sent in the order given.

    `hold` returns when nothing is being computed; new requests wait in the server until `release`.
    `doze` and `wake` do the same, but free the memory of weights and cache in between, on servers
    that were started with `sleep_flag`. `reload` takes a checkpoint's folder as the server sees it.
    `reset_cache` discards what older weights computed; `is_reset` reads whether it did. `name`
    tells the server what its weights are called from now on; `read_name` reads the reply to
    `ask_name`, which is `unnamed` for weights that were never named. `absent` says why a server may
    lack these endpoints. `minus_infinity` is how its JSON writes that log-probability. `transfer`
    is set if weights can also come from another process.
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
    unnamed: str
    absent: str
    minus_infinity: float
    sleep_flag: str
    transfer: TransferEndpoints | None = None


@dataclass(frozen=True, kw_only=True)
class Wire:
    """One kind of server; None means that it has no such endpoint.

    `method` is that of generation. `authorize` makes the headers that carry an API key.
    `reply_error` finds the error in a reply whose status is 200, for servers that send those.
    `decode_models` reads the served names. `rate_limited`: its reply headers say how much of a
    quota is left. `unchecked` reads, from the list of models, what the server does not check.
    `closes_streams`: it closes a stream's connection without announcing that.
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


def administer(method: str, path: str, body: object = None) -> WireRequest:
    """A request to an endpoint that changes the server."""
    encoded = None if body is None else msgspec.json.encode(body)
    return WireRequest(method, path, encoded, administers=True)


def adapter_endpoints(
    *, prefix: str = "", model: Callable[[str, str], str] = lambda _, adapter: adapter
) -> AdapterEndpoints:
    """The endpoints of vLLM, which other servers have under the same names."""

    def load(name: str, path: str) -> WireRequest:
        body = {"lora_name": name, "lora_path": path}
        return administer("POST", f"{prefix}/load_lora_adapter", body)

    def unload(name: str) -> WireRequest:
        return administer("POST", f"{prefix}/unload_lora_adapter", {"lora_name": name})

    return AdapterEndpoints(load=load, unload=unload, model=model)


OPENAI = Wire()
TOKENIZING = Tokenizing(path="/tokenize", encode=encode_tokenize, decode=decode_tokenize)
