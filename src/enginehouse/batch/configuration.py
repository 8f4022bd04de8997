"""How a file of prompts is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from enginehouse.deployment.configuration import AskConfig


class SampleConfig(AskConfig):
    """Prompts, how each is asked unless it says otherwise, and where the samples go."""

    prompts: str
    """The file of prompts, a JSON object a line; - is standard input."""
    out: str
    """The file of samples, a JSON object a line; the same command completes it; - prints them."""
    plain: bool = False
    """Whether every line of the prompts is a prompt as it stands, instead of JSON."""
    chat: bool = False
    """Whether a prompt without messages is a user's message, instead of a text to continue."""
    n: Annotated[int, Field(ge=1)] = 1
    """How many answers to each prompt."""
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
    """A text that ends an answer, and is left out of it."""
    json_schema: Path | None = None
    """A file with the JSON schema that every answer is to follow."""
    choice: tuple[str, ...] | None = None
    """The only answers that are allowed, as in yes,no."""
    concurrency: Annotated[int, Field(ge=1)] | None = None
    """Requests in flight at most; without it, what the server's queue allows."""

    @field_validator("choice", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_constraint(self) -> Self:
        if self.json_schema is not None and self.choice is not None:
            raise ValueError("an answer follows a schema or is one of a choice: give one of them")
        return self
