"""What a user may configure, from YAML and from the command line. Unknown keys are errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from enginehouse.core.errors import ConfigurationError, UnknownNameError, nearest
from enginehouse.core.strict_model import StrictModel
from enginehouse.core.strict_yaml import load_yaml
from enginehouse.core.system_errors import advice
from enginehouse.core.tool_steps import Step
from enginehouse.engines.options import ServerOptions
from enginehouse.engines.registry import ENGINES
from enginehouse.launch.adapter_names import with_adapter_apart

Fraction = Annotated[float, Field(ge=0, le=1)]


class ServeConfig(StrictModel):
    """A model, and the server that is to serve it."""

    model: str | None = None
    """A Hugging Face handle, a checkpoint folder, a GGUF file, or a bundled name (smollm2)."""
    adapter: Path | None = None
    """A LoRA adapter's folder: it answers, not the bare model. Also written MODEL+FOLDER."""
    path: Path | None = None
    """A local checkpoint to fall back to when the handle cannot be had."""
    engine: str | None = None
    """The engine, as `enginehouse engines` lists them; what this machine can run when not given."""
    python: Path | None = None
    """The Python of an existing engine environment."""
    version: str | None = None
    """The engine's version, for a managed environment: any published one, or latest."""
    variant: Literal["cpu", "cuda"] | None = None
    """The engine's build, for a managed environment; chosen by the machine when not given."""
    start_timeout: Annotated[float, Field(gt=0)] = 3600.0
    """Seconds that the server may take to become ready, however well it gets on."""
    progress_timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds without log or load progress while it starts, or without a sign of work later."""
    max_restarts: Annotated[int, Field(ge=0)] = 10
    """How often a server that dies under work is started again."""
    server: ServerOptions = ServerOptions()
    """How the server is started."""

    @model_validator(mode="before")
    @classmethod
    def _adapter_of_model(cls, values: Any) -> Any:
        return with_adapter_apart(values)

    @field_validator("engine")
    @classmethod
    def _known_engine(cls, name: str | None) -> str | None:
        if name is not None and name not in ENGINES.names():
            raise UnknownNameError("engine", name, ENGINES.names())
        return name


class AskConfig(ServeConfig):
    """Whom to ask: a model that is served for it, a running server, or a hosted API."""

    model: str | None = None
    """A model, as for serve, that is served for this; a running server's URL; a hosted model."""
    url: str | None = None
    """The base URL of a running server, which is used and never stopped."""
    api_key_env: str | None = None
    """The environment variable that holds the API key, instead of the engine's own."""

    @model_validator(mode="before")
    @classmethod
    def _url_for_model(cls, values: Any) -> Any:
        model = values.get("model")
        if isinstance(model, str) and "://" in model and not values.get("url"):
            return {**values, "url": model, "model": None}
        return values

    @model_validator(mode="after")
    def _someone_to_ask(self) -> Self:
        if self.url is None and self.model is None and self.path is None:
            raise ValueError("give a model (or path), or the url of a server")
        if self.url is not None and "@" in _network_location(self.url):
            # for the whole model, not the field: a field's error shows its value
            raise ValueError(
                "the url holds a password, which would be stored with the run: leave it out; "
                "a key belongs in ENGINEHOUSE_API_KEY"
            )
        return self


def _network_location(url: str) -> str:
    """User, password, host and port; the whole `url` where it cannot be split."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        if "@" in url:
            return url  # not shown: it may hold a password
        raise ValueError(
            f"the url {url!r} is not the address of a server; "
            "give one such as http://127.0.0.1:8000 or http://[::1]:8000"
        ) from None


class ParityConfig(ServeConfig):
    """A model to serve, and how far the engine may be from transformers."""

    threshold: Annotated[float, Field(gt=0)] = 0.1
    """The mean difference of log-probabilities, in nats per token, up to which they agree."""


class CheckConfig(AskConfig):
    """Whom to check, and under how many users at once."""

    users: Annotated[int, Field(ge=1)] = 8
    """Users who ask at the same time."""


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


class EvaluationConfig(AskConfig):
    """One evaluation: a model (or the URL of a server) and tasks."""

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


class BenchConfig(AskConfig):
    """A load for a model that is served for it, or for the server at a URL."""

    concurrency: tuple[Annotated[int, Field(ge=1)], ...] = (1,)
    """Requests in flight; several, one after another, as in 1,8,32."""
    input_tokens: Annotated[int, Field(ge=1)] = 512
    """The length of every prompt, in tokens."""
    output_tokens: Annotated[int, Field(ge=1)] = 128
    """The length of every answer, in tokens."""
    requests: Annotated[int, Field(ge=1)] | None = None
    """Requests at each concurrency; 4 times the concurrency, but at least 32, when not given."""
    warmup: Annotated[int, Field(ge=0)] | None = None
    """Requests before each measurement that do not count; as many as in flight when not given."""
    seed: int = 0
    """Decides the prompts' tokens, except their first few, which are always new."""
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
            raise ValueError(f"{self.requests} requests are never {most} in flight: ask for more")
        own = [n for n in ("path", "python", "version", "variant") if getattr(self, n) is not None]
        own += [n for n in self.server.model_dump(exclude_defaults=True) if n != "api_key"]
        if self.url is not None and own:
            raise ValueError(f"without effect on a server that runs already: {', '.join(own)}")
        return self


Config = TypeVar("Config", bound=BaseModel)
_ANY_TEXT = {"stop", "system"}  # what is said to a model may hold null bytes


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigurationError naming file and line."""
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {path}",
            why=error.strerror,
            fix=advice(error, otherwise="check the path given to --config"),
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{path} is not UTF-8 text", why=str(error), fix="save it as UTF-8"
        ) from error
    try:
        value = load_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigurationError(f"{path}{where}: not valid YAML", why=problem) from error
    if not isinstance(value, dict):
        raise ConfigurationError(
            f"{path} must be a mapping of keys to values", why=f"it is {type(value).__name__}"
        )
    return value


def with_task_paths(values: Mapping[str, Any], *, folder: Path) -> dict[str, Any]:
    """An evaluation's values with its tasks' files and data found from `folder`, their file's own.

    What is not in the shape of a list of tasks is left for `parse` to refuse.
    """
    tasks = values.get("tasks")
    if not isinstance(tasks, list):
        return dict(values)
    return {**values, "tasks": [_with_paths(task, folder) for task in tasks]}


def _with_paths(task: Any, folder: Path) -> Any:
    if isinstance(task, str):
        is_file = task.endswith((".yaml", ".yml"))
        return str(folder / Path(task).expanduser()) if is_file else task
    if not isinstance(task, Mapping):
        return task
    named = {"name": _with_paths(task["name"], folder)} if "name" in task else {}
    data = task.get("data")
    if isinstance(data, str) and not data.startswith("hf:"):
        named["data"] = str(folder / Path(data).expanduser())
    return {**task, **named}


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over` that are not None, mappings merged key by key."""
    result = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merged(result[key], value)
        elif value is not None:
            result[key] = value
    return result


def parse(kind: type[Config], values: Mapping[str, Any], *, origin: str) -> Config:
    """Validate `values`. Raises ConfigurationError naming each wrong key and the nearest one."""
    for where, what in _with_bad_text(values):
        raise ConfigurationError(
            f"{origin}: {where!r} holds {what}",
            why="it cannot be part of a path, a name or a command line, and cannot be stored",
            fix="take it out",
        )
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [_explain(kind, dict(problem)) for problem in error.errors()]
        raise ConfigurationError(
            f"{origin}: {lines[0]}" if len(lines) == 1 else f"{origin}:\n  " + "\n  ".join(lines),
            fix="docs/reference.md lists every key; so does --help, as options",
        ) from error


def _with_bad_text(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """The places of texts in `value` that hold a null byte or are not Unicode, and which."""
    if isinstance(value, str | Path):
        text = str(value)
        if "\0" in text and where.partition(".")[0] not in _ANY_TEXT:
            yield where, "a null byte"
        if any("\ud800" <= character <= "\udfff" for character in text):
            yield where, "bytes that are not UTF-8"
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _with_bad_text(key, where or "a key")
            yield from _with_bad_text(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _with_bad_text(inner, where)


def _explain(kind: type[BaseModel], problem: dict[str, Any]) -> str:
    location = problem["loc"]
    where = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        known = _fields(kind, location[:-1])
        close = nearest(str(location[-1]), known)
        hint = f"did you mean {close!r}?" if close else f"known: {', '.join(sorted(known))}"
        return f"unknown key {where!r}; {hint}"
    message: str = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"{where!r} is missing"
    if not where:
        return message
    return f"{where!r}: {message}{_given(location, problem['input'])}"


def _given(location: tuple[Any, ...], value: Any) -> str:
    """What was given, unless there may be a secret in it."""
    if {"api_key", "env_vars"} & set(location):
        return ""
    if isinstance(value, Mapping | list | tuple | BaseModel):
        return f" (got a {type(value).__name__})"
    return f" (got {value!r})"


def _fields(kind: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    for part in location:
        if part == "server":
            kind = ServerOptions
        elif part == "tasks":
            kind = TaskConfig
    return list(kind.model_fields)
