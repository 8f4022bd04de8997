"""What the commands that ask a model are configured with."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from enginehouse.core.strict_model import StrictModel
from enginehouse.core.tool_steps import Step
from enginehouse.deployment.configuration import AskConfig, Fraction, ServeConfig


class ParityConfig(ServeConfig):
    """A model to serve, and how far the engine may be from transformers."""

    threshold: Annotated[float, Field(gt=0)] = 0.1
    """The mean difference of log-probabilities, in nats per token, up to which they agree."""


class CheckConfig(AskConfig):
    """Whom to check, and under how many users at once."""

    users: Annotated[int, Field(ge=1)] = 8
    """Users who ask at the same time."""
    conformance: bool = False
    """Run the conformance suite instead, whose cases expect exact answers."""


class ChatConfig(AskConfig):
    """Whom to talk to, and how."""

    system: str | None = None
    """A system message before the conversation."""
    temperature: Annotated[float, Field(ge=0)] = 0.7
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling; 1 is off."""
    max_tokens: Annotated[int, Field(ge=1)] = 512
    """The longest answer, in tokens."""
    seed: int | None = None
    """Every answer's seed, for engines that have one."""


class TaskConfig(StrictModel):
    """One task of an evaluation; None takes the evaluation's own setting."""

    name: str
    """A task's name, or the path of a task's YAML file, relative to the file that says so."""
    data: str | None = None
    """The data to use instead of the task's own: a file, found likewise, or hf:owner/name:file."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """How many items."""
    samples: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """How often each item is asked."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """The longest answer, in tokens."""


class TaskSettings(StrictModel):
    """What an evaluation asks, and how; the same for every model."""

    tasks: tuple[TaskConfig, ...]
    """What to evaluate."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """How many items of each task; a seeded choice, the same for every model."""
    samples: Annotated[int, Field(ge=1, le=100_000)] = 1
    """How often each item is asked."""
    seed: int = 0
    """Decides which items, their order, and every sample's seed."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling; 1 is off."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Only the k most likely tokens; 0 is off."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """The longest answer, in tokens, instead of each task's own."""
    system: str | None = None
    """A system message for every conversation, instead of a task's own."""
    concurrency: Annotated[int, Field(ge=1)] | None = None
    """Requests in flight at most; without it, what the server's queue allows."""
    max_failed: Fraction = 0.01
    """The share of failed samples above which there is no headline."""
    tool_steps: tuple[Step, ...] = tuple(Step)
    """How tasks with tools may ask, in this order: native, constrained, prompted."""
    price_input: Annotated[float, Field(ge=0)] | None = None
    """US dollars per million tokens of prompts; with price_output, the report tells the cost."""
    price_output: Annotated[float, Field(ge=0)] | None = None
    """US dollars per million tokens of answers."""

    @model_validator(mode="after")
    def _both_prices(self) -> Self:
        if (self.price_input is None) != (self.price_output is None):
            raise ValueError("give price_input and price_output, or neither")
        return self

    @field_validator("tool_steps", mode="before")
    @classmethod
    def _several_steps(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("tool_steps")
    @classmethod
    def _each_once(cls, value: tuple[Step, ...]) -> tuple[Step, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError("name at least one step, and each once")
        return value

    @field_validator("tasks", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [{"name": task} if isinstance(task, str) else task for task in value]
        return value

    @model_validator(mode="after")
    def _some_task(self) -> Self:
        if not self.tasks:
            raise ValueError(
                "'tasks' is empty: name at least one, as `enginehouse tasks` lists them"
            )
        return self


class EvaluationConfig(TaskSettings, AskConfig):
    """One evaluation: a model (or the URL of a server) and tasks."""
