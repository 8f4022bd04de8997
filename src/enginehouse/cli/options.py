"""Options that several commands share, and those that a configuration gives to its command."""

from __future__ import annotations

import functools
import inspect
import math
import types
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

import typer

from enginehouse.cli.console import Console
from enginehouse.core.errors import ConfigurationError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from enginehouse.core.strict_model import StrictModel

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Print tracebacks of errors, too.")
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print nothing but results and errors.")
]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-run", help="Run the configuration in another user's run folder without asking."
    ),
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="A YAML file; command-line options override it.")
]
VersionOption = Annotated[
    str | None,
    typer.Option("--version", help="The engine's version: any published one, or latest."),
]
VariantOption = Annotated[
    str | None, typer.Option("--variant", help="The engine's build: cpu or cuda.")
]

_ARGUMENTS = ("directory", "model")  # in this order; everything else is an option
_FLAGS = {
    "tasks": ["--task", "-t"],
    "ready_markers": ["--ready-marker"],
    "env_vars": ["--env"],
    "json_schema": ["--schema"],
}
_REPEATED = {"tasks", "env_vars", "stop", "include", "ready_markers"}

Config = TypeVar("Config", bound="StrictModel")


@dataclass(frozen=True)
class Given(Generic[Config]):
    """What the command line says about a configuration, and the YAML file behind it."""

    kind: type[Config]
    options: dict[str, Any]
    """Only what was given, nested as in YAML."""
    file: Path | None

    def settings(self) -> Config:
        """The file's values with the options over them. Raises ConfigurationError."""
        from enginehouse.deployment.configuration import merged, read_yaml

        return self.parse(merged(read_yaml(self.file) if self.file else {}, self.options))

    def parse(self, values: dict[str, Any]) -> Config:
        """`values` as the configuration. Raises ConfigurationError naming the file."""
        from enginehouse.deployment.configuration import parse

        return parse(self.kind, values, origin=str(self.file or "the command line"))


def with_config_options(
    kind: type[Config], *, without: Collection[str] = (), json: bool = True
) -> Callable[[Callable[..., Any]], Any]:
    """Make a command of a function of `given` and `console`, which may have options of its own.

    The command gets --config, --json, --verbose and --quiet, and an option for every field of the
    configuration and of its server's options, if it has a server, except for those in `without`.
    --json is left out if `json` is false.
    """
    from enginehouse.engines.options import ServerOptions

    common = {"config": ConfigOption, "verbose": VerboseOption, "quiet": QuietOption}
    if json:
        common = {"config": ConfigOption, "json": JsonOption, **common}
    shared = [
        _keyword(name, option, None if name == "config" else False)
        for name, option in common.items()
    ]
    known = kind.user_fields()
    fields = [name for name in known if name != "server" and name not in without]
    options = [_option(name, known[name]) for name in fields]
    server = [
        _option(n, field, panel="Server")
        for n, field in ServerOptions.model_fields.items()
        if "server" in known and n != "env_names"  # --env NAME
    ]

    def decorate(command: Callable[..., Any]) -> Any:
        hints = inspect.get_annotations(command, eval_str=True)
        own = [
            parameter.replace(annotation=hints[parameter.name])
            for parameter in inspect.signature(command).parameters.values()
            if parameter.name not in ("given", "console")
        ]

        @functools.wraps(command)
        def wrapper(**values: Any) -> Any:
            chosen = {n: v for p in server if (v := values.pop(n := p.name)) not in (None, [])}
            console = Console(**{n: values.pop(n) for n in common if n != "config"})
            if "env_vars" in chosen:
                chosen |= _variables(chosen.pop("env_vars"))
            if "api_key" in chosen:
                console.note(
                    "warning: everyone on this machine can read --api-key in `ps`; "
                    "set ENGINEHOUSE_API_KEY instead"
                )
            options_given = {n: v for n in fields if (v := values.pop(n)) not in (None, [])}
            if "server" in known:
                options_given["server"] = chosen
            given = Given(kind, options_given, values.pop("config"))
            return command(**values, given=given, console=console)

        parameters = sorted([*own, *shared, *options, *server], key=lambda p: _order(p.name))
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


def finite(value: float) -> float:
    """The callback of a number that no configuration checks: refuses inf and nan."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def _option(name: str, field: FieldInfo, *, panel: str | None = None) -> inspect.Parameter:
    kinds = set(_plain(field.annotation))
    if name in _ARGUMENTS:
        option = typer.Argument(help=field.description)
    else:
        flag = name.replace("_", "-")
        default = [f"--{flag}/--no-{flag}" if bool in kinds else f"--{flag}"]
        option = typer.Option(
            *_FLAGS.get(name, default), help=field.description, rich_help_panel=panel
        )
    kind: Any = list[str]
    if name not in _REPEATED:
        kind = next((k for k in (bool, int, float, Path) if k in kinds), str)
    return _keyword(name, Annotated[kind | None, option], None)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _order(name: str) -> int:
    return _ARGUMENTS.index(name) if name in _ARGUMENTS else len(_ARGUMENTS)


def _plain(annotation: Any) -> list[Any]:
    """The types that an annotation allows, without Annotated, Optional and Literal."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _plain(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [kind for part in get_args(annotation) for kind in _plain(part)]
    return [str] if origin is Literal else [annotation]


def _variables(values: list[str]) -> dict[str, Any]:
    """The fields that --env gives: NAME=VALUE, or NAME for a variable of this process."""
    pairs: dict[str, str] = {}
    names: list[str] = []
    for value in values:
        name, equals, text = value.partition("=")
        if not name:
            raise ConfigurationError(f"--env {value!r} is neither NAME=VALUE nor NAME")
        if equals:
            pairs[name] = text
        else:
            names.append(name)
    return {"env_vars": pairs, **({"env_names": names} if names else {})}
