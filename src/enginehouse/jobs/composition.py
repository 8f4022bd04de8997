"""Composes a launch file: Hydra's defaults, the packaged groups of conf/, and overrides."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from enginehouse.core.errors import ConfigurationError, UnknownNameError
from enginehouse.deployment.configuration import read_yaml
from enginehouse.jobs.variables import is_secret_name

_GROUPS = "pkg://enginehouse.jobs.conf"
_NOT_SERVED = ("nim", "trtllm")  # the original launcher runs NVIDIA's containers of them
_SERVE_YOURSELF = "start it yourself, and choose `deployment: none` with target.api_endpoint.url"
_MISSING = "???"
_FROM_HERE = re.compile(r"\$\{\s*oc\.env\s*:\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}")
_ANY_FROM_HERE = re.compile(r"\$\{\s*oc\.env\s*:\s*([A-Za-z_][A-Za-z0-9_]*)")
_TASK_KEY = re.compile(r"^(?P<start>(?:\+\+|\+|~)?evaluation\.tasks\.)(?P<rest>[^=]*)")
_OVERRIDDEN = re.compile(r"^[+~]*([^=]*).*", re.DOTALL)
_TIME = re.compile(r"\A\d+(:\d\d)+")
_SELECT = re.compile(r"\$\{\s*oc\.select\s*:")
_INDEX = re.compile(r"\[(\d+)\]")
_UNSET = re.compile(r"Environment variable '(\w+)' not found")
_DOTTED_KEY = re.compile(r"\A[A-Za-z_][\w-]*(\.[\w-]+)+=")


@dataclass(frozen=True, kw_only=True)
class Composition:
    """A launch file with its groups, its overrides applied and its interpolations resolved.

    `lines` has the line in the file of each key that the file itself gives, by its dotted path.
    `overridden` are the keys that are given otherwise.
    """

    path: Path
    values: Mapping[str, Any]
    lines: Mapping[str, int]
    overridden: frozenset[str] = frozenset()

    def gives(self, key: str) -> bool:
        """Whether a dotted key was given: not only by a packaged group."""
        return key in self.lines or key in self.overridden

    def place(self, key: str) -> str:
        """Where a dotted key was given: a line of the file, or an override."""
        return f"{self.path}, line {self.lines[key]}" if key in self.lines else "the overrides"


def compose_launch(path: Path, *, overrides: Sequence[str] = ()) -> Composition:
    """The composition of a launch file with Hydra's overrides ("a.b=c", "++a.b=c", "~a.b").

    A dotted key is set whether or not it is there already: unknown keys are refused later, by
    name. Raises ConfigurationError, which names all values that are missing. Not thread-safe:
    Hydra has global state.
    """
    written = read_yaml(path)
    named = _by_index(overrides, written)
    composed = load_launch(path, overrides=named)
    overridden = frozenset(_OVERRIDDEN.sub(r"\1", word) for word in named)
    own = _own_keys(path, without=overridden)
    raw = _as_written(OmegaConf.to_container(composed, resolve=False), own)
    return Composition(
        path=path,
        values=_resolve(raw, path),
        lines={key: line for key, (line, _) in own.items()},
        overridden=overridden,
    )


def load_launch(path: Path | None, *, overrides: Sequence[str] = ()) -> DictConfig:
    """What Hydra composes, without any value read: of a launch file, or of the groups alone.

    Raises ConfigurationError.
    """
    written = read_yaml(path) if path is not None else {}
    if path is not None:
        _require_supported_format(written, path)
    overrides = _by_index(overrides, written)
    _register_resolvers()
    words = [f"++{word}" if _DOTTED_KEY.match(word) else word for word in overrides]
    running = GlobalHydra.instance().hydra  # of an application that calls this
    GlobalHydra.instance().clear()
    begin = (
        initialize_config_dir(str(path.absolute().parent), version_base="1.3")
        if path is not None
        else initialize_config_module(_GROUPS.removeprefix("pkg://"), version_base="1.3")
    )
    try:
        with begin:
            name = path.stem if path is not None else "default"
            return compose(name, overrides=[*words, f"hydra.searchpath=[{_GROUPS}]"])
    except (HydraException, OmegaConfBaseException) as error:
        raise _configuration_error(error, path or Path("the packaged groups")) from error
    finally:
        GlobalHydra.instance().hydra = running


def resolve_launch(config: DictConfig, *, path: Path) -> Composition:
    """The composition of a configuration that may have been changed since it was loaded.

    `path` names it in messages. Raises ConfigurationError as `compose_launch` does.
    """
    _register_resolvers()
    raw = OmegaConf.to_container(config, resolve=False)
    values = _resolve(raw, path)
    keys = frozenset(key for key, _ in leaves(values))
    return Composition(path=path, values=values, lines={}, overridden=keys)


def _resolve(raw: Any, path: Path) -> dict[str, Any]:
    """Raw values with their interpolations resolved."""
    if missing := [key for key, value in leaves(raw) if value == _MISSING]:
        raise ConfigurationError(
            f"{path}: these keys have no value: {', '.join(missing)}",
            why="the file, or a group that it uses, marks them as mandatory (???)",
            fix="give them in the file or as " + " ".join(f"-o {key}=…" for key in missing),
        )
    prepared = _prepare(raw)
    _require_no_secrets(prepared, path)
    try:
        values = OmegaConf.to_container(OmegaConf.create(prepared), resolve=True)
    except OmegaConfBaseException as error:
        raise _configuration_error(error, path) from error
    return values  # type: ignore[return-value]


def require_served(deployment: Mapping[str, Any], *, place: str) -> None:
    """Raise ConfigurationError for a deployment, at a dotted path, of a type that runs nowhere."""
    if (kind := deployment.get("type")) in _NOT_SERVED:
        raise ConfigurationError(
            f"{place}.type: {kind} cannot be started here",
            why="the original launcher runs NVIDIA's container of it",
            fix=_SERVE_YOURSELF,
        )


def _require_supported_format(written: Mapping[str, Any], path: Path) -> None:
    if "services" in written or "benchmarks" in written:
        raise ConfigurationError(
            f"{path} is written for version 0.3 or later of the NeMo Evaluator launcher",
            why="it has services and benchmarks in place of deployment and evaluation",
            fix=f"convert it: enginehouse launch convert {path}",
        )
    if path.suffix != ".yaml":
        raise ConfigurationError(
            f"{path} does not end in .yaml", why="Hydra only reads such files", fix="rename it"
        )


def _by_index(overrides: Sequence[str], written: Mapping[str, Any]) -> list[str]:
    """The overrides, with the names of tasks in `evaluation.tasks.NAME.key=…` as their indices."""
    evaluation = written.get("evaluation")
    tasks = evaluation.get("tasks") if isinstance(evaluation, Mapping) else None
    names = [
        str(task.get("name")) if isinstance(task, Mapping) else ""
        for task in (tasks if isinstance(tasks, list) else ())
    ]
    return [_TASK_KEY.sub(lambda match: _replace_name(match, names), word) for word in overrides]


def _replace_name(match: re.Match[str], names: Sequence[str]) -> str:
    rest = match["rest"]
    if rest.partition(".")[0].partition("=")[0].isdecimal():
        return match[0]
    exact = [name for name in names if name and rest.startswith(f"{name}.")]
    chosen = max(exact, key=len, default=rest.partition(".")[0])
    places = [
        index
        for index, name in enumerate(names)
        if chosen == name or (not exact and name.endswith(f".{chosen}"))
    ]
    if not places:
        raise UnknownNameError("task in this file", chosen, names)
    if len(places) > 1:
        raise ConfigurationError(
            f"{chosen!r} is the name of several tasks in this file",
            fix="say which: " + " or ".join(f"evaluation.tasks.{place}.…" for place in places),
        )
    return f"{match['start']}{places[0]}{rest[len(chosen) :]}"


def _require_no_secrets(values: Any, path: Path) -> None:
    """A secret that is read while composing would be written into scripts and records."""
    for key, value in leaves(values):
        names = _ANY_FROM_HERE.findall(value) if isinstance(value, str) else ()
        if secret := next((name for name in names if is_secret_name(name)), None):
            raise ConfigurationError(
                f"{path}: {key} holds the value of {secret}",
                why="it would be written into scripts and records, and shown by ps",
                fix=f"give it to the job: env_vars: {{{secret}: host:{secret}}}",
            )


def _register_resolvers() -> None:
    OmegaConf.register_new_resolver("select_not_null", _select_not_null, replace=True)


def _select_not_null(key: str, default: Any = None, *, _root_: Any) -> Any:
    """The value of a key; `default` where it is null or does not exist."""
    value = OmegaConf.select(_root_, key, throw_on_resolution_failure=False)
    return default if value is None else value


def _prepare(value: Any, *, in_variables: bool = False) -> Any:
    """Raw values, ready to be resolved.

    `${oc.select}` falls back for null, too: it would turn into the text "None". A variable of this
    machine that is the whole value of an environment variable is not read here, as it may be a
    secret.
    """
    if isinstance(value, Mapping):
        return {
            key: _prepare(inner, in_variables=in_variables or key in ("env_vars", "envs"))
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_prepare(inner, in_variables=in_variables) for inner in value]
    if not isinstance(value, str):
        return value
    if in_variables and (match := _FROM_HERE.fullmatch(value.strip())):
        return f"host:{match[1]}"
    return _SELECT.sub("${select_not_null:", value)


def leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is neither a mapping nor a list, with its dotted path."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{where}.{index}")
    else:
        yield where, value


def _own_keys(path: Path, *, without: Collection[str]) -> dict[str, tuple[int, yaml.Node]]:
    """The file's own keys, by their dotted paths: the line and the value of each."""
    root = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    return {
        key: (line, value)
        for key, line, value in _keys(root, "")
        if not any(key == other or key.startswith(f"{other}.") for other in without)
    }


def _keys(node: yaml.Node | None, where: str) -> Iterator[tuple[str, int, yaml.Node]]:
    pairs: list[tuple[str, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        pairs = [(str(key.value), key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        pairs = [(str(index), value, value) for index, value in enumerate(node.value)]
    for name, start, value in pairs:
        place = f"{where}.{name}" if where else name
        yield place, start.start_mark.line + 1, value
        yield from _keys(value, place)


def _as_written(raw: Any, own: Mapping[str, tuple[int, yaml.Node]]) -> Any:
    """The raw values with what the file says where Hydra's reading differs.

    YAML 1.1 reads 10:00:00 as 36,000, and ??? does not replace the null of a group.
    """
    for key, (_, node) in own.items():
        if not isinstance(node, yaml.ScalarNode):
            continue
        *steps, last = key.split(".")
        holder = raw
        for step in steps:
            holder = holder[int(step)] if isinstance(holder, list) else holder.get(step, {})
        if not isinstance(holder, dict) or last not in holder:
            continue
        is_time = isinstance(holder[last], int) and _TIME.fullmatch(node.value)
        if is_time or (holder[last] is None and node.value == _MISSING):
            holder[last] = node.value
    return raw


def _configuration_error(error: Exception, path: Path) -> ConfigurationError:
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        unknown = UnknownNameError(group or "configuration", name, error.options)
        if name in _NOT_SERVED:
            unknown.fix = _SERVE_YOURSELF
        return unknown
    message, *rest = (line.strip() for line in str(error).splitlines() if line.strip())
    if isinstance(error, OverrideParseException):
        return ConfigurationError(
            f"-o {error.override}: not an override",
            why=message,
            fix="write KEY=VALUE; quote a value with = , { or blanks twice: -o 'key=\"a=b\"'",
        )
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        cause = error.msg.splitlines()[0] if error.msg else message
        key = _INDEX.sub(r".\1", str(error.full_key))  # as overrides write it
        unset = _UNSET.search(cause)
        return ConfigurationError(
            f"{path}: {key} could not be resolved",
            why=f"it uses {unset[1]}, which is not set in this environment" if unset else cause,
            fix=f"export {unset[1]} first, or give the key a value: -o {key}=…"
            if unset
            else f"set what it refers to, or give the key a value: -o {key}=…",
        )
    return ConfigurationError(f"{path}: {message}", why=" ".join(rest) or None)
