"""Prompts: a conversation, a text, or token ids."""

from __future__ import annotations

from typing import Literal

import msgspec

from enginehouse.core.tool_calls import ToolCall

Role = Literal["system", "user", "assistant", "tool"]


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One turn of a conversation.

    An assistant's turn may contain tool calls; a tool's turn answers the call `tool_call_id`.
    """

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


class ChatPrompt(msgspec.Struct, frozen=True, tag="chat", tag_field="kind"):
    """A conversation; the engine applies the model's chat template."""

    messages: tuple[Message, ...]


class TextPrompt(msgspec.Struct, frozen=True, tag="text", tag_field="kind"):
    """A text to continue, without a template."""

    text: str


class TokenPrompt(msgspec.Struct, frozen=True, tag="tokens", tag_field="kind"):
    """Exact token ids to continue."""

    token_ids: tuple[int, ...]


Prompt = ChatPrompt | TextPrompt | TokenPrompt
