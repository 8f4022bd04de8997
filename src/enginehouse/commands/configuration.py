"""What the commands that ask a model are configured with: a plan, and settings of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from enginehouse.batch.settings import SampleSettings
from enginehouse.bench.settings import BenchSettings
from enginehouse.core.reasoning import ReasoningUse
from enginehouse.core.strict_model import ComposedModel, Fraction, StrictModel
from enginehouse.core.tool_steps import Step
from enginehouse.deployment.configuration import AskConfig, ServeConfig, absolute_if_exists


class BenchConfig(ComposedModel):
    """A load, for a model or for the server at a URL."""

    plan: AskConfig
    settings: BenchSettings

    @model_validator(mode="after")
    def _all_has_effect(self) -> Self:
        _require_one_server(self.plan)
        if self.plan.url is not None and (unused := self.plan.unused_at_url()):
            raise ValueError(f"without effect on a running server: {', '.join(unused)}")
        return self


def _require_one_server(plan: AskConfig) -> None:
    if plan.has_several_servers:
        raise ValueError("one server is looked at here: leave instances and addresses out")


class SampleConfig(ComposedModel):
    """Prompts, and a model that answers them."""

    plan: AskConfig
    settings: SampleSettings


class ParitySettings(StrictModel):
    """How much an engine may differ from transformers."""

    threshold: Annotated[float, Field(gt=0)] = 0.1
    """The largest mean difference of log-probabilities to accept, in nats per token."""


class ParityConfig(ComposedModel):
    """A model whose engine is compared with transformers."""

    plan: ServeConfig
    settings: ParitySettings


class CheckSettings(StrictModel):
    """How a server is checked."""

    users: Annotated[int, Field(ge=1)] = 8
    """The number of simultaneous users."""
    conformance: bool = False
    """Run the conformance suite instead, which expects exact answers."""


class CheckConfig(ComposedModel):
    """A server to check."""

    plan: AskConfig
    settings: CheckSettings

    @model_validator(mode="after")
    def _one_server(self) -> Self:
        _require_one_server(self.plan)
        return self


class ChatSettings(StrictModel):
    """How a conversation begins, and sampling parameters."""

    system: str | None = None
    """A system message before the conversation."""
    temperature: Annotated[float, Field(ge=0)] = 0.7
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling; 1 is off."""
    max_tokens: Annotated[int, Field(ge=1)] = 512
    """The longest answer, in tokens."""
    seed: int | None = None
    """The seed of every answer, for engines that support seeds."""


class ChatConfig(ComposedModel):
    """A model to talk to."""

    plan: AskConfig
    settings: ChatSettings


class RunWithSettings(StrictModel):
    """What stands between a program and the model."""

    record: Path | None = None
    """Keep every request and its answer in this folder."""
    replay: bool = False
    """With record: answer a request from the folder where its answer is there and repeatable."""
    adapters: Path | None = None
    """A folder of LoRA adapters, each of which the program may name as its model."""


class RunWithConfig(ComposedModel):
    """A model for any program that has an OpenAI client."""

    plan: AskConfig
    settings: RunWithSettings


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


class JudgeConfig(AskConfig):
    """The model that scores answers, for tasks whose metric is `judge`: its plan and sampling."""

    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling; 1 is off."""
    max_tokens: Annotated[int, Field(ge=1)] = 1024
    """Its longest reply, in tokens; one that is cut off is no verdict."""
    concurrency: Annotated[int, Field(ge=1)] | None = None
    """The largest number of requests in flight; by default it follows the server's queue."""
    request_timeout: Annotated[float, Field(gt=0)] | None = None
    """Seconds that one attempt at a request may take; by default 1200."""
    max_retries: Annotated[int, Field(ge=0)] | None = None
    """How often a request is sent again after a failure that may pass; by default 4 times."""

    @property
    def name(self) -> str:
        """What the user calls it."""
        return self.model or str(self.path or self.url)


class TaskConfig(StrictModel):
    """One task of an evaluation; None means the evaluation's own setting."""

    name: str
    """A task's name, or the path of its YAML file, relative to the configuration file."""
    data: str | None = None
    """Data that replaces the task's own: a file, found in the same way, or hf:owner/name:file."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """The number of items."""
    samples: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """How often each item is asked."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """The longest answer, in tokens."""
    temperature: Annotated[float, Field(ge=0)] | None = None
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Nucleus sampling; 1 is off."""
    top_k: Annotated[int, Field(ge=0)] | None = None
    """Only the k most likely tokens; 0 is off."""
    system: str | None = None
    """A system message for every conversation, instead of the task's own."""
    reasoning: ReasoningUse | None = None
    """What scoring does with an answer's reasoning: strip, strip_finished or keep."""
    reasoning_end: Annotated[str, Field(min_length=1)] | None = None
    """A text that ends the reasoning, besides the usual marks such as </think>."""
    concurrency: Annotated[int, Field(ge=1)] | None = None
    """The largest number of the task's requests in flight."""
    request_timeout: Annotated[float, Field(gt=0)] | None = None
    """Seconds that one attempt at a request may take."""
    max_retries: Annotated[int, Field(ge=0)] | None = None
    """How often a request is sent again after a failure that may pass."""


class EvaluationSettings(StrictModel):
    """The tasks and sampling parameters of an evaluation, the same for every model."""

    tasks: tuple[TaskConfig, ...]
    """The tasks."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """The number of items of each task: a seeded choice, the same for every model."""
    samples: Annotated[int, Field(ge=1, le=100_000)] = 1
    """How often each item is asked."""
    seed: int = 0
    """Determines the items, their order, and the seed of every sample."""
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
    """The largest number of requests in flight; by default it follows the server's queue."""
    request_timeout: Annotated[float, Field(gt=0)] | None = None
    """Seconds that one attempt at a request may take; by default 1200."""
    max_retries: Annotated[int, Field(ge=0)] | None = None
    """How often a request is sent again after a failure that may pass; by default 4 times."""
    reasoning: ReasoningUse = ReasoningUse.STRIP
    """What scoring does with an answer's reasoning: strip, strip_finished or keep."""
    reasoning_end: Annotated[str, Field(min_length=1)] | None = None
    """A text that ends the reasoning, besides the usual marks such as </think>."""
    max_failed: Fraction = 0.01
    """The share of failed samples above which a task has no headline."""
    tool_steps: tuple[Step, ...] = tuple(Step)
    """The steps that tasks with tools may use, in order: native, constrained, prompted."""
    price_input: Annotated[float, Field(ge=0)] | None = None
    """US dollars per million prompt tokens; with price_output, the report shows the cost."""
    price_output: Annotated[float, Field(ge=0)] | None = None
    """US dollars per million generated tokens."""
    judge: JudgeConfig | None = None
    """The model that scores answers, for tasks whose metric is `judge`."""

    @property
    def most_in_flight(self) -> int | None:
        """The largest number of requests in flight of all tasks together; None is not bounded."""
        bounds = [task.concurrency or self.concurrency for task in self.tasks]
        return None if None in bounds else max(bound for bound in bounds if bound)

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

    def with_absolute_paths(self) -> Self:
        """The same settings for a process in any folder."""
        tasks = tuple(
            task.model_copy(
                update={
                    "name": absolute_if_exists(task.name) if _is_file(task.name) else task.name,
                    "data": absolute_if_exists(task.data),
                }
            )
            for task in self.tasks
        )
        judge = self.judge and self.judge.with_absolute_paths()
        return self.model_copy(update={"tasks": tasks, "judge": judge})


class EvaluationConfig(ComposedModel):
    """One evaluation: a model (or the URL of a server) and tasks."""

    plan: AskConfig
    settings: EvaluationSettings

    def with_absolute_paths(self) -> Self:
        """The same evaluation for a process in any folder."""
        return self.model_copy(
            update={
                "plan": self.plan.with_absolute_paths(),
                "settings": self.settings.with_absolute_paths(),
            }
        )


def with_task_paths(values: Mapping[str, Any], *, folder: Path) -> dict[str, Any]:
    """An evaluation's values with its tasks' files and data found from `folder`, their file's own.

    What is not in the shape of a list of tasks is left for `parse` to refuse.
    """
    tasks = values.get("tasks")
    if not isinstance(tasks, list):
        return dict(values)
    return {**values, "tasks": [_with_paths(task, folder) for task in tasks]}


def _is_file(task: str) -> bool:
    """Whether it names a task's file, and not one of our own tasks."""
    return task.endswith((".yaml", ".yml"))


def _with_paths(task: Any, folder: Path) -> Any:
    if isinstance(task, str):
        return str(folder / Path(task).expanduser()) if _is_file(task) else task
    if not isinstance(task, Mapping):
        return task
    named = {"name": _with_paths(task["name"], folder)} if "name" in task else {}
    data = task.get("data")
    if isinstance(data, str) and not data.startswith("hf:"):
        named["data"] = str(folder / Path(data).expanduser())
    return {**task, **named}
