"""How one kind of server is spoken to: its dialects, its headers, and the small endpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec

from enginehouse.client.transport import WireRequest, bearer
from enginehouse.client.unchecked import Unchecked
from enginehouse.core.errors import WireError
from enginehouse.dialects import openai_chat, openai_completions
from enginehouse.dialects.base import Dialect
from enginehouse.dialects.openai_errors import error_reply
from enginehouse.dialects.openai_replies import decode_models, decode_tokenize, encode_tokenize


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
    rate_limited: bool = False
    unchecked: Callable[[bytes], Unchecked] | None = None
    closes_streams: bool = False


def _load(name: str, path: str) -> WireRequest:
    body = msgspec.json.encode({"lora_name": name, "lora_path": path})
    return WireRequest("POST", "/v1/load_lora_adapter", body)


def _unload(name: str) -> WireRequest:
    body = msgspec.json.encode({"lora_name": name})
    return WireRequest("POST", "/v1/unload_lora_adapter", body)


OPENAI = Wire()
VLLM = Wire(
    tokenizing=Tokenizing(path="/tokenize", encode=encode_tokenize, decode=decode_tokenize),
    adapters=AdapterEndpoints(load=_load, unload=_unload),
)
