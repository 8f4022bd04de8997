"""Options that several commands share."""

from __future__ import annotations

import functools
import inspect
import math
import types
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer

from enginehouse.cli.console import Console
from enginehouse.core.errors import ConfigurationError, FlagError
from enginehouse.engines.vllm.history import REMOVED_FLAGS

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say more; tracebacks of errors.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say results and errors only.")]
TrustOption = Annotated[
    bool,
    typer.Option("--trust-run", help="Run what somebody else's run folder says, without asking."),
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="A YAML file; options on the command line win.")
]
VersionOption = Annotated[
    str | None,
    typer.Option("--version", help="The engine's version: any published one, or latest."),
]
VariantOption = Annotated[
    str | None, typer.Option("--variant", help="The engine's build: cpu or cuda.")
]

_ARGUMENTS = ("directory", "model")  # in this order; everything else is an option
_FLAGS = {"tasks": ["--task", "-t"], "env_vars": ["--env"], "json_schema": ["--schema"]}
_KEY_IN_SIGHT = (
    "warning: everyone on this machine can read --api-key in `ps`; set ENGINEHOUSE_API_KEY instead"
)
_REPEATED = {"tasks", "env_vars", "stop"}


def with_config_options(
    kind: type[BaseModel], *, without: Collection[str] = ()
) -> Callable[[Callable[..., Any]], Any]:
    """Give a command an option for every field of a configuration and of its server's options.

    But for those in `without`.

    The command takes those that were given as its last argument, `given`, nested as in YAML. It has
    an option `quiet`: without it, a key on the command line is warned of.
    """
    from enginehouse.engines.options import ServerOptions

    def decorate(command: Callable[..., Any]) -> Any:
        hints = inspect.get_annotations(command, eval_str=True)
        own = [
            p.replace(annotation=hints[p.name])
            for p in inspect.signature(command).parameters.values()
            if p.name != "given"
        ]
        fields = [n for n in kind.model_fields if n != "server" and n not in without]
        options = [_parameter(name, kind.model_fields[name]) for name in fields]
        server = [_parameter(n, f, "Server") for n, f in ServerOptions.model_fields.items()]

        @functools.wraps(command)
        def wrapper(**values: Any) -> Any:
            chosen = {n: v for p in server if (v := values.pop(n := p.name)) not in (None, [])}
            if pairs := chosen.get("env_vars"):
                chosen["env_vars"] = _pairs(pairs)
            if "api_key" in chosen:
                Console(quiet=values["quiet"]).note(_KEY_IN_SIGHT)
            given = {n: v for n in fields if (v := values.pop(n)) not in (None, [])}
            return command(**values, given=given | {"server": chosen})

        parameters = sorted([*own, *options, *server], key=lambda p: _order(p.name))
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


def finite(value: float) -> float:
    """The callback of a number that no configuration checks; inf and nan are refused."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def refuse_removed_flags(arguments: Sequence[str]) -> None:
    """Say what replaces an engine's flag that is given as an option but no longer exists."""
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag in REMOVED_FLAGS and flag != "--task":  # ours has that name
            raise FlagError(f"vllm no longer has {flag}", fix=REMOVED_FLAGS[flag])


def _parameter(name: str, field: FieldInfo, panel: str | None = None) -> inspect.Parameter:
    kinds = set(_plain(field.annotation))
    flag = "--" + name.replace("_", "-")
    flags = _FLAGS.get(name, [f"{flag}/--no-{flag[2:]}" if bool in kinds else flag])
    kind: Any
    if name in _REPEATED:
        kind = list[str]
    else:
        kind = next((k for k in (bool, int, float, Path) if k in kinds), str)
    option = (
        typer.Argument(help=field.description)
        if name in _ARGUMENTS
        else typer.Option(*flags, help=field.description, rich_help_panel=panel)
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _order(name: str) -> int:
    return _ARGUMENTS.index(name) if name in _ARGUMENTS else len(_ARGUMENTS)


def _plain(annotation: Any) -> list[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _plain(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [kind for part in get_args(annotation) for kind in _plain(part)]
    if origin is Literal:
        return [str]
    return [annotation]


def _pairs(values: Any) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or not key:
            raise ConfigurationError(f"--env {value!r} is not NAME=VALUE")
        pairs[key] = text
    return pairs
