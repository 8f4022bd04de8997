"""The load that `enginehouse bench` puts on a server."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from enginehouse.core.strict_model import Fraction, StrictModel


class BenchSettings(StrictModel):
    """A load: how many requests, of which lengths, and how many at once."""

    concurrency: tuple[Annotated[int, Field(ge=1)], ...] = (1,)
    """Requests in flight; several values, as in 1,8,32, are measured one after another."""
    input_tokens: Annotated[int, Field(ge=1)] = 512
    """The length of every prompt, in tokens."""
    output_tokens: Annotated[int, Field(ge=1)] = 128
    """The length of every answer, in tokens."""
    requests: Annotated[int, Field(ge=1)] | None = None
    """Requests per concurrency; by default 4 times the concurrency, but at least 32."""
    warmup: Annotated[int, Field(ge=0)] | None = None
    """Warm-up requests before each measurement; by default the concurrency."""
    seed: int = 0
    """Determines the prompts' tokens, except their first few, which are always new."""
    max_failed: Fraction = 0.01
    """The share of failed requests above which the command fails."""

    @field_validator("concurrency", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",")]
        return [value] if isinstance(value, int) else value

    @model_validator(mode="after")
    def _some_load(self) -> Self:
        if not self.concurrency:
            raise ValueError("'concurrency' is empty: give at least one number")
        if self.requests is not None and self.requests < max(self.concurrency):
            most = max(self.concurrency)
            raise ValueError(
                f"{self.requests} requests are too few for {most} in flight: ask for more"
            )
        return self
