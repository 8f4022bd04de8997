"""What `enginehouse arena serve` is configured with."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from enginehouse.core.strict_model import ComposedModel, StrictModel
from enginehouse.deployment.configuration import AskConfig


class ServiceSettings(StrictModel):
    """Where scenes connect, and how the model is asked."""

    arena_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """The port for scenes, on 127.0.0.1; by default a free one. Agent Arena's own use 5000."""
    system: str | None = None
    """The system message, in place of the one that explains the world and the tools."""
    temperature: Annotated[float, Field(ge=0)] = 0.7
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling; 1 is off."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Only the k most likely tokens; 0 is off."""
    max_tokens: Annotated[int, Field(ge=1)] = 512
    """The longest answer, in tokens."""


class ServiceConfig(ComposedModel):
    """A model that decides for the agents of Agent Arena's scenes."""

    plan: AskConfig
    settings: ServiceSettings
