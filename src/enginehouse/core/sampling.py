"""Sampling parameters, each with an explicit default.

Engines take silent defaults from a model's generation_config.json, so dialects send every field
here that the engine knows, whether the user set it or not.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from enginehouse.core.errors import ConfigurationError

_FLOATS = (
    "temperature",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)  # those with no upper bound


class StructuredOutput(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A constraint on the output; exactly one field is set."""

    json_schema: dict[str, Any] | None = None
    choice: tuple[str, ...] | None = None
    regex: str | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        given = [f for f in self.__struct_fields__ if getattr(self, f) is not None]
        if len(given) != 1:
            raise ConfigurationError(
                f"structured output needs exactly one constraint, got {given or 'none'}",
                fix="give one of json_schema, choice, regex, grammar",
            )


class SamplingParameters(msgspec.Struct, frozen=True, kw_only=True):
    """Sampling parameters with OpenAI's and vLLM's meanings.

    temperature 0 is greedy. top_k 0 and top_p 1 are off. logprobs and prompt_logprobs: None is
    off, 0 the chosen token's only, k > 0 the k most likely besides. `extra` goes to the engine as
    it is, except for fields that the engine is known to ignore: those are refused.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 512
    n: int = 1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    ignore_eos: bool = False
    structured: StructuredOutput | None = None
    extra: dict[str, Any] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        checks = (
            (self.temperature >= 0, "temperature must be at least 0"),
            (0 < self.top_p <= 1, "top_p must be in (0, 1]"),
            (self.top_k >= 0, "top_k must be at least 0 (0 is off)"),
            (0 <= self.min_p <= 1, "min_p must be in [0, 1]"),
            (self.max_tokens >= 1, "max_tokens must be at least 1"),
            (self.n >= 1, "n must be at least 1"),
        )
        for valid, message in checks:
            if not valid:
                raise ConfigurationError(message)
        for name in _FLOATS:
            if not math.isfinite(getattr(self, name)):
                raise ConfigurationError(f"{name} must be a finite number")
