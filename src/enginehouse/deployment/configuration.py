"""What a user may configure, from YAML and from the command line. Unknown keys are errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator

from enginehouse.core.errors import ConfigurationError, UnknownNameError
from enginehouse.core.strict_model import StrictModel, explain
from enginehouse.core.strict_yaml import LARGEST_FILE, parse_mapping
from enginehouse.core.system_errors import advice
from enginehouse.deployment.adapter_names import with_adapter_apart
from enginehouse.engines.options import ServerOptions
from enginehouse.engines.registry import ENGINES


class ServeConfig(StrictModel):
    """A model, and the server that is to serve it."""

    model: str | None = None
    """A Hugging Face handle, a checkpoint folder, a GGUF file, or a bundled name (smollm2)."""
    path: Path | None = None
    """A local checkpoint to use if the handle is not found."""
    engine: str | None = None
    """The engine, as listed by `enginehouse engines`; by default one that this machine can run."""
    python: Path | None = None
    """The Python of an existing engine environment."""
    version: str | None = None
    """The engine's version, for a managed environment: any published one, or latest."""
    variant: Literal["cpu", "cuda"] | None = None
    """The engine's build, for a managed environment; by default it depends on the machine."""
    start_timeout: Annotated[float, Field(gt=0)] = 3600.0
    """The longest time until the server is ready, in seconds, even if it makes progress."""
    progress_timeout: Annotated[float, Field(gt=0)] = 600.0
    """The longest time without progress, while the server starts or has requests, in seconds."""
    max_restarts: Annotated[int, Field(ge=0)] = 10
    """How often a server that crashes under load is restarted."""
    server: ServerOptions = ServerOptions()
    """How the server is started."""
    adapter: Path | None = None
    """The folder of a LoRA adapter to use; can also be written as MODEL+FOLDER."""

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

    def with_absolute_paths(self) -> Self:
        """The same plan for a process in any folder."""
        changes = {
            "model": absolute_if_exists(self.model),
            "path": self.path and self.path.absolute(),
            "python": self.python and self.python.absolute(),
            "adapter": self.adapter and self.adapter.absolute(),
        }
        return self.model_copy(update=changes)


class AskConfig(ServeConfig):
    """What answers: a model to serve, a running server, or a hosted API."""

    model: str | None = None
    """A model to serve, as for `serve`; the URL of a running server; or a hosted model."""
    url: str | None = None
    """The base URL of a running server, which is never stopped."""
    instances: Annotated[int, Field(ge=1)] | None = None
    """The number of servers to start, which share the requests and this machine's GPUs or cores."""
    addresses: Path | None = None
    """A folder where servers publish their addresses (serve --announce); all of them are used."""
    api_key_env: str | None = None
    """The environment variable with the API key, instead of the engine's own."""

    @model_validator(mode="before")
    @classmethod
    def _url_for_model(cls, values: Any) -> Any:
        model = values.get("model")
        if isinstance(model, str) and "://" in model and not values.get("url"):
            return {**values, "url": model, "model": None}
        return values

    @model_validator(mode="after")
    def _model_or_url(self) -> Self:
        if self.url is not None and self.addresses is not None:
            raise ValueError(f"give a url or a folder of addresses ({self.addresses}), not both")
        if self.url is not None and self.instances is not None:
            raise ValueError("instances are servers to start: remove either instances or the url")
        if (self.instances or 1) > 1 and self.server.port is not None:
            raise ValueError("several instances cannot share a port: remove server.port")
        if self.addresses is not None and self.instances is None:
            return self
        if self.url is None and self.model is None and self.path is None:
            raise ValueError("give a model (or path), or the url of a server")
        if self.url is not None and "@" in _network_location(self.url):
            # for the whole model, not the field: a field's error shows its value
            raise ValueError(
                "the url holds a password, which would be stored with the run: leave it out; "
                "a key belongs in ENGINEHOUSE_API_KEY"
            )
        return self

    def with_absolute_paths(self) -> Self:
        """The same plan for a process in any folder."""
        plan = super().with_absolute_paths()
        if (
            self.runs_already
        ):  # there, the model is a name, even if a folder here is called the same
            plan = plan.model_copy(update={"model": self.model})
        return plan.model_copy(update={"addresses": self.addresses and self.addresses.absolute()})

    @property
    def runs_already(self) -> bool:
        """Whether the plan names servers that are running, and none is to be started."""
        return self.url is not None or (self.addresses is not None and self.instances is None)

    @property
    def has_several_servers(self) -> bool:
        """Whether requests may be spread over more than one server."""
        return (self.instances or 1) > 1 or self.addresses is not None

    def unused_at_url(self) -> list[str]:
        """The keys given here that have no effect on a server that is already running."""
        own = [n for n in ("path", "python", "version", "variant") if getattr(self, n) is not None]
        return own + [n for n in self.server.model_dump(exclude_defaults=True) if n != "api_key"]


def absolute_if_exists(path: str | None) -> str | None:
    """The absolute path of a file or folder; any other text unchanged. Blocking."""
    return str(Path(path).absolute()) if path is not None and Path(path).exists() else path


def _network_location(url: str) -> str:
    """User, password, host and port; the whole `url` if it cannot be split."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        if "@" in url:
            return url  # not shown: it may hold a password
        raise ValueError(
            f"the url {url!r} is not the address of a server; "
            "give one such as http://127.0.0.1:8000 or http://[::1]:8000"
        ) from None


Config = TypeVar("Config", bound=StrictModel)
_ANY_TEXT = {"stop", "system"}  # what is said to a model may hold null bytes


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigurationError naming file and line."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {path}",
            why=error.strerror,
            fix=advice(error, otherwise="check the path given to --config"),
        ) from error
    return parse_mapping(content, path=path)


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
            fix="remove it",
        )
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = explain(error, kind)
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
