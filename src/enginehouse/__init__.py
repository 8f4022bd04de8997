"""Runs LLM inference engines (vLLM first) and evaluates the models they serve.

`serve` and `evaluate` do what the commands do; docs/getting-started.md shows both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from enginehouse.core.errors import EnginehouseError
from enginehouse.core.messages import ChatPrompt, Message, TextPrompt, TokenPrompt
from enginehouse.core.sampler import SampleRequest, SampleResponse
from enginehouse.core.sampling import SamplingParameters, StructuredOutput

if TYPE_CHECKING:
    from enginehouse.launch.evaluating import evaluate
    from enginehouse.launch.serving import serve

__all__ = [
    "ChatPrompt",
    "EnginehouseError",
    "Message",
    "SampleRequest",
    "SampleResponse",
    "SamplingParameters",
    "StructuredOutput",
    "TextPrompt",
    "TokenPrompt",
    "evaluate",
    "serve",
]

_LAZY = {"evaluate": "enginehouse.launch.evaluating", "serve": "enginehouse.launch.serving"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
