"""How a folder is watched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from enginehouse.commands.configuration import EvaluationConfig


class WatchConfig(EvaluationConfig):
    """A folder in which checkpoints and adapters appear, and how each is evaluated."""

    directory: Path
    """The folder whose subfolders are the checkpoints and adapters."""
    model: str | None = None
    """The base of the adapters; it is evaluated, too."""
    once: bool = False
    """Whether what is there is evaluated and that is all, instead of waiting for more."""
    interval: Annotated[float, Field(gt=0)] = 5.0
    """Seconds between two looks; what has not changed from one to the next may be finished."""
    html: Path | None = None
    """The page with the curve; it lies with the watch's own files when not given."""
    retry_failed: bool = False
    """Whether what failed before is tried again."""

    @model_validator(mode="after")
    def _someone_to_ask(self) -> Self:
        if self.url is not None or self.adapter is not None:
            raise ValueError("give the base alone: neither a url nor an adapter")
        return self
