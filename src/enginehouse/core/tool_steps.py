"""The ways of asking for a tool call. Imports nothing: the command line reads it first."""

from __future__ import annotations

from enum import StrEnum


class Step(StrEnum):
    """A way of getting a call: the engine's own, a JSON schema by constrained decoding, or text."""

    NATIVE = "native"
    CONSTRAINED = "constrained"
    PROMPTED = "prompted"
