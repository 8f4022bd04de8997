"""Options that several commands share."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say more; tracebacks of errors.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say results and errors only.")]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="A YAML file; options on the command line win.")
]
ModelArgument = Annotated[
    str | None,
    typer.Argument(help="A Hugging Face handle, checkpoint folder, GGUF file, or smollm2."),
]
PathOption = Annotated[
    Path | None, typer.Option("--path", help="A local checkpoint if the handle cannot be had.")
]
EngineOption = Annotated[str | None, typer.Option("--engine", help="The engine (vllm).")]
PythonOption = Annotated[
    Path | None, typer.Option("--python", help="The Python of an existing engine environment.")
]
VersionOption = Annotated[str | None, typer.Option("--version", help="The engine's version.")]
VariantOption = Annotated[
    str | None, typer.Option("--variant", help="The engine's build: cpu or cuda.")
]
StartTimeoutOption = Annotated[
    float | None, typer.Option("--start-timeout", help="Seconds until the server must be ready.")
]


def with_server_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command one option for every field of ServerOptions.

    The command takes them as its last argument, `server`: a dict of those that were given.
    """
    from enginehouse.engines.base import ServerOptions

    own = [p for p in inspect.signature(command).parameters.values() if p.name != "server"]
    names: list[str] = []
    added: list[inspect.Parameter] = []
    for name, field in ServerOptions.model_fields.items():
        flag = "--" + name.replace("_", "-")
        kind, flags = _option(name, field.annotation, flag)
        names.append(name)
        option = typer.Option(*flags, help=field.description, rich_help_panel="Server")
        added.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[kind, option],
            )
        )

    @functools.wraps(command)
    def wrapper(**values: Any) -> Any:
        server = {name: values.pop(name) for name in names}
        server["env_vars"] = _pairs(server["env_vars"] or ())
        return command(**values, server={k: v for k, v in server.items() if v not in (None, {})})

    hints = inspect.get_annotations(command, eval_str=True)
    wrapper.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        + added
    )
    wrapper.__annotations__ = {p.name: p.annotation for p in added} | {
        p.name: hints[p.name] for p in own
    }
    return wrapper


def refuse_removed_flags(arguments: Sequence[str]) -> None:
    """Say what replaces an engine's flag that is given as an option but no longer exists."""
    from enginehouse.core.errors import FlagError
    from enginehouse.engines.vllm_history import REMOVED_FLAGS

    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag in REMOVED_FLAGS and flag != "--task":  # ours has that name
            raise FlagError(f"vllm no longer has {flag}", fix=REMOVED_FLAGS[flag])


def _option(name: str, annotation: Any, flag: str) -> tuple[Any, list[str]]:
    if name == "env_vars":
        return list[str] | None, ["--env"]
    if name == "extra_args":
        return str | None, [flag]
    kinds = set(_plain(annotation))
    if bool in kinds:
        return bool | None, [f"{flag}/--no-{flag[2:]}"]
    kind = int if int in kinds else float if float in kinds else str
    return kind | None, [flag]


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
    from enginehouse.core.errors import ConfigurationError

    pairs: dict[str, str] = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or not key:
            raise ConfigurationError(f"--env {value!r} is not NAME=VALUE")
        pairs[key] = text
    return pairs
