"""Runs LLM inference engines (vLLM first) and evaluates the models they serve.

`serve` and `evaluate` do what the commands do; docs/getting-started.md shows both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from enginehouse.commands.evaluate import evaluate
    from enginehouse.core.errors import EnginehouseError
    from enginehouse.core.messages import ChatPrompt, Message, TextPrompt, TokenPrompt
    from enginehouse.core.sampler import SampleRequest, SampleResponse
    from enginehouse.core.sampling import SamplingParameters, StructuredOutput
    from enginehouse.deployment.opening import serve

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

# A name is imported when it is used: the command line needs none of them.
_MODULES = {
    "ChatPrompt": "core.messages",
    "EnginehouseError": "core.errors",
    "Message": "core.messages",
    "SampleRequest": "core.sampler",
    "SampleResponse": "core.sampler",
    "SamplingParameters": "core.sampling",
    "StructuredOutput": "core.sampling",
    "TextPrompt": "core.messages",
    "TokenPrompt": "core.messages",
    "evaluate": "commands.evaluate",
    "serve": "deployment.opening",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        import importlib

        return getattr(importlib.import_module(f"enginehouse.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
