"""What `enginehouse sample` asks, and where its answers go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from enginehouse.core.strict_model import StrictModel


class SampleSettings(StrictModel):
    """Prompts, their default sampling parameters, and where the samples go."""

    prompts: str
    """The file of prompts, one JSON object per line; - is standard input."""
    out: str
    """The file of samples, one JSON object per line; running again completes it; - prints them."""
    plain: bool = False
    """Treat every line of the prompts as a text prompt instead of JSON."""
    chat: bool = False
    """Treat a text prompt as a user message instead of a text to continue."""
    n: Annotated[int, Field(ge=1)] = 1
    """Answers per prompt."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling; 1 is off."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Only the k most likely tokens; 0 is off."""
    max_tokens: Annotated[int, Field(ge=1)] = 512
    """The longest answer, in tokens."""
    seed: int | None = None
    """The seed of every request."""
    stop: tuple[str, ...] = ()
    """A text that ends an answer and is not part of it."""
    json_schema: Path | None = None
    """A file with the JSON schema that every answer must follow."""
    choice: tuple[str, ...] | None = None
    """The allowed answers, as in yes,no."""
    concurrency: Annotated[int, Field(ge=1)] | None = None
    """The largest number of requests in flight; by default it follows the server's queue."""

    @field_validator("choice", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_constraint(self) -> Self:
        if self.json_schema is not None and self.choice is not None:
            raise ValueError("give json_schema or choice, not both")
        return self
