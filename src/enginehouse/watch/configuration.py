"""How a folder is watched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from enginehouse.commands.configuration import EvaluationConfig, EvaluationSettings
from enginehouse.core.strict_model import ComposedModel, StrictModel
from enginehouse.deployment.configuration import ServeConfig

Name = Annotated[str, Field(min_length=1)]

# What makes two evaluations points of one curve; the rest says how fast, and where.
_SAME = (
    "directory",
    "model",
    "path",
    "engine",
    "tasks",
    "limit",
    "samples",
    "seed",
    "temperature",
    "top_p",
    "top_k",
    "max_tokens",
    "system",
    "tool_steps",
)


class WatchSettings(StrictModel):
    """The folder where checkpoints and adapters appear, and how it is scanned."""

    directory: Path
    """The folder whose subfolders are the checkpoints and adapters."""
    once: bool = False
    """Evaluate what is already there, then exit."""
    interval: Annotated[float, Field(gt=0)] = 5.0
    """Seconds between two scans; a folder that did not change between them may be complete."""
    html: Path | None = None
    """The HTML page with the curve; by default it is stored with the watch's own files."""
    retry_failed: bool = False
    """Retry failed evaluations."""
    include: tuple[Name, ...] = ()
    """Patterns of the subfolders' names, such as step_*; by default all subfolders."""
    ready_markers: tuple[Name, ...] = ()
    """A folder is complete only when it also has one of these files."""
    order: Literal["first", "last"] = "first"
    """Which waiting step to evaluate next: the first (smallest) or the last."""

    def with_absolute_paths(self) -> Self:
        """The same settings for a process in any folder."""
        changes = {
            "directory": self.directory.expanduser().absolute(),
            "html": self.html and self.html.expanduser().absolute(),
        }
        return self.model_copy(update=changes)


class WatchConfig(ComposedModel):
    """A folder, and how each checkpoint and adapter in it is evaluated; the plan is their base."""

    plan: ServeConfig
    evaluation: EvaluationSettings
    settings: WatchSettings

    @model_validator(mode="after")
    def _base_alone(self) -> Self:
        if self.plan.adapter is not None or "://" in str(self.plan.model):
            raise ValueError("give the base alone: neither a url nor an adapter")
        return self

    def asked(self) -> dict[str, Any]:
        """What makes it a curve of its own."""
        values = self.model_dump(mode="json")
        return {name: values[name] for name in _SAME}

    def with_absolute_paths(self) -> Self:
        """The same watch for a process in any folder."""
        return self.model_copy(
            update={
                "plan": self.plan.with_absolute_paths(),
                "evaluation": self.evaluation.with_absolute_paths(),
                "settings": self.settings.with_absolute_paths(),
            }
        )

    def evaluation_config(self, **changes: Any) -> EvaluationConfig:
        """The evaluation of the base; of an adapter or a checkpoint with `changes`."""
        return EvaluationConfig(**dict(self.plan) | dict(self.evaluation) | changes)
