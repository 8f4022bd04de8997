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
from enginehouse.gateway.configuration import GatewaySettings
from enginehouse.harnesses.names import harness_task_name


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
        raise ValueError("this command works with one server: remove instances and addresses")


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


class RunWithConfig(ComposedModel):
    """A model for any program that has an OpenAI client."""

    plan: AskConfig
    settings: GatewaySettings


class ServiceSettings(StrictModel):
    """Where scenes connect, and how the model is asked."""

    arena_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """The port for scenes, on 127.0.0.1; by default a free one. Agent Arena's own scenes use
    5000."""
    system: str | None = None
    """A system message that replaces the one explaining the world and the tools."""
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
    """Its longest reply, in tokens; a truncated reply does not count as a verdict."""
    concurrency: Annotated[int, Field(ge=1)] | None = None
    """The largest number of requests in flight; by default it follows the server's queue."""
    request_timeout: Annotated[float, Field(gt=0)] | None = None
    """The longest time for one attempt at a request, in seconds; by default 1200."""
    max_retries: Annotated[int, Field(ge=0)] | None = None
    """How often a request is retried after a transient failure; by default 4 times."""

    @property
    def name(self) -> str:
        """What the user calls it."""
        return self.model or str(self.path or self.url)


class TaskConfig(StrictModel):
    """One task of an evaluation; None means the evaluation's own setting."""

    name: str
    """A task's name, a harness's task such as lm-eval:piqa, or a YAML file relative to the
    configuration."""
    data: str | None = None
    """Data that replaces the task's own: a file, also relative to the configuration, or
    hf:owner/name:file."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """The number of items."""
    samples: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """The number of samples per item."""
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
    """A text that ends the reasoning, in addition to the usual tags such as </think>."""
    concurrency: Annotated[int, Field(ge=1)] | None = None
    """The largest number of the task's requests in flight."""
    request_timeout: Annotated[float, Field(gt=0)] | None = None
    """The longest time for one attempt at a request, in seconds."""
    max_retries: Annotated[int, Field(ge=0)] | None = None
    """How often a request is retried after a transient failure."""
    few_shot: Annotated[int, Field(ge=0)] | None = None
    """The number of examples before each question, for a harness's task."""
    arguments: dict[str, Any] | None = None
    """Other arguments of a harness's task, under the harness's names."""

    @model_validator(mode="after")
    def _as_the_task_is(self) -> Self:
        if harness_task_name(self.name) is None:
            given = [n for n in ("few_shot", "arguments") if getattr(self, n) is not None]
            what = "is for tasks of a harness, as in lm-eval:NAME"
        else:
            given = [n for n in ("data", "reasoning_end") if getattr(self, n) is not None]
            if self.reasoning is ReasoningUse.STRIP_FINISHED:
                given.append("reasoning")
            what = "has no effect, because the harness reads its data and scores by itself"
        if given:
            raise ValueError(f"of task {self.name}, {', '.join(given)} {what}")
        return self


class EvaluationSettings(StrictModel):
    """The tasks and sampling parameters of an evaluation, the same for every model."""

    tasks: tuple[TaskConfig, ...]
    """The tasks."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """The number of items of each task: a seeded choice, the same for every model."""
    samples: Annotated[int, Field(ge=1, le=100_000)] = 1
    """The number of samples per item."""
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
    """The longest time for one attempt at a request, in seconds; by default 1200."""
    max_retries: Annotated[int, Field(ge=0)] | None = None
    """How often a request is retried after a transient failure; by default 4 times."""
    reasoning: ReasoningUse = ReasoningUse.STRIP
    """What scoring does with an answer's reasoning: strip, strip_finished or keep."""
    reasoning_end: Annotated[str, Field(min_length=1)] | None = None
    """A text that ends the reasoning, in addition to the usual tags such as </think>."""
    max_failed: Fraction = 0.01
    """The share of failed samples above which a task reports no headline figure."""
    tool_steps: tuple[Step, ...] = tuple(Step)
    """The steps that tasks with tools may use, in order: native, constrained, prompted."""
    price_input: Annotated[float, Field(ge=0)] | None = None
    """US dollars per million prompt tokens; with price_output, the report shows the cost."""
    price_output: Annotated[float, Field(ge=0)] | None = None
    """US dollars per million generated tokens."""
    judge: JudgeConfig | None = None
    """The model that scores answers, for tasks whose metric is `judge`."""
    include_path: Path | None = None
    """A folder with your own tasks for a harness."""
    harness_version: str | None = None
    """The harness's version; by default the tested one."""

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

    @model_validator(mode="after")
    def _one_version_is_of_one_harness(self) -> Self:
        names = [harness_task_name(task.name) for task in self.tasks]
        harnesses = sorted({name.harness for name in names if name is not None})
        if not harnesses and (self.include_path or self.harness_version):
            raise ValueError(
                "include_path and harness_version are for tasks of a harness, as in lm-eval:NAME"
            )
        if self.harness_version and len(harnesses) > 1:
            raise ValueError(
                f"harness_version is for one harness, and these are tasks of "
                f"{', '.join(harnesses)}: evaluate them one by one"
            )
        return self

    def with_absolute_paths(self) -> Self:
        """The same settings for a process in any folder."""
        tasks = tuple(
            task.model_copy(
                update={
                    "name": _absolute_name(task.name),
                    "data": absolute_if_exists(task.data),
                }
            )
            for task in self.tasks
        )
        judge = self.judge and self.judge.with_absolute_paths()
        include_path = self.include_path and self.include_path.expanduser().absolute()
        return self.model_copy(
            update={"tasks": tasks, "judge": judge, "include_path": include_path}
        )


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
    found = dict(values)
    if isinstance(include := values.get("include_path"), str):
        found["include_path"] = str(folder / Path(include).expanduser())
    if isinstance(tasks := values.get("tasks"), list):
        found["tasks"] = [_with_paths(task, folder) for task in tasks]
    return found


def _path_in(task: str) -> str | None:
    """The file that a task's name is, or begins with: its own YAML file, or a harness's file."""
    named = harness_task_name(task)
    file = named.task.partition("@")[0] if named else task
    return file if file.endswith((".yaml", ".yml", ".py")) else None


def _absolute_name(task: str) -> str:
    if (path := _path_in(task)) is None:
        return task
    return task.replace(path, str(absolute_if_exists(path)), 1)


def _with_paths(task: Any, folder: Path) -> Any:
    if isinstance(task, str):
        path = _path_in(task)
        return (
            task if path is None else task.replace(path, str(folder / Path(path).expanduser()), 1)
        )
    if not isinstance(task, Mapping):
        return task
    named = {"name": _with_paths(task["name"], folder)} if "name" in task else {}
    data = task.get("data")
    if isinstance(data, str) and not data.startswith("hf:"):
        named["data"] = str(folder / Path(data).expanduser())
    return {**task, **named}
