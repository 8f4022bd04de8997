"""Tools that a model may call, and the calls it made."""

from __future__ import annotations

from typing import Any

import msgspec


class ToolDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """A tool as described to a model; `parameters` is the JSON Schema of its arguments."""

    name: str
    description: str
    parameters: dict[str, Any]


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call as the model wrote it: `arguments` is unchecked JSON text."""

    id: str
    name: str
    arguments: str
