"""How a folder is watched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from enginehouse.commands.configuration import EvaluationConfig, TaskSettings
from enginehouse.deployment.adapter_names import with_adapter_apart
from enginehouse.deployment.configuration import BaseServeConfig, ServeConfig


class WatchConfig(TaskSettings, BaseServeConfig):
    """A folder where checkpoints and adapters appear, and how each is evaluated."""

    directory: Path
    """The folder whose subfolders are the checkpoints and adapters."""
    model: str | None = None
    """The base of the adapters; it is evaluated, too."""
    once: bool = False
    """Evaluate what is already there, then exit."""
    interval: Annotated[float, Field(gt=0)] = 5.0
    """Seconds between two scans; a folder that did not change between them may be complete."""
    html: Path | None = None
    """The HTML page with the curve; by default it is stored with the watch's own files."""
    retry_failed: bool = False
    """Try again what failed before."""

    @model_validator(mode="before")
    @classmethod
    def _base_alone(cls, values: Any) -> Any:
        named = with_adapter_apart(values)
        is_address = "://" in str(values.get("model"))
        if is_address or named.get("url") is not None or named.get("adapter") is not None:
            raise ValueError("give the base alone: neither a url nor an adapter")
        return values

    def serving(self) -> ServeConfig:
        """The plan of a server for the base."""
        return ServeConfig(**{name: getattr(self, name) for name in BaseServeConfig.model_fields})

    def evaluation(self, **changes: Any) -> EvaluationConfig:
        """The evaluation of the base; of an adapter or a checkpoint with `changes`."""
        shared = {*BaseServeConfig.model_fields, *TaskSettings.model_fields}
        return EvaluationConfig(**{name: getattr(self, name) for name in shared} | changes)
