"""An engine's command line in a launch file: `extra_args`, and a `command` that starts the engine.

What has a key of its own is moved there, so that GPUs can be counted. Flags that the engine no
longer has are taken out, with a warning.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from enginehouse.core.errors import ConfigurationError, UnknownNameError
from enginehouse.engines import arguments
from enginehouse.engines.arguments import Argument
from enginehouse.engines.own_command import OwnCommand
from enginehouse.engines.registry import own_command
from enginehouse.jobs.configuration import NOTHING
from enginehouse.jobs.variables import assigns_secret

_OURS: Final = {
    "--host": "the server listens where the client of the same job asks it",
    "--model": "the model is hf_model_handle or checkpoint_path",
    "--model-path": "the model is hf_model_handle or checkpoint_path",
}
_SECRET: Final = {
    "--api-key": "leave it out: a job's servers get keys of their own where they need one",
    "--hf-token": "leave it out, and put HF_TOKEN: host:HF_TOKEN under env_vars",
}
_SHOWN: Final = "its value would be written into scripts and records, and shown by ps"
_SHELL: Final = re.compile(r"[;&|<>`$\n]")


@dataclass(frozen=True, kw_only=True)
class EngineArguments:
    """A deployment's values with its command lines sorted out, and what there is to say about it.

    `not_acted_on` has flags and keys without effect, by their dotted path, and why.
    """

    values: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    not_acted_on: Mapping[str, str]


def sort_arguments(
    values: Mapping[str, Any], *, place: str, given: Callable[[str], bool]
) -> EngineArguments:
    """Sort out the command lines in the values of one deployment.

    `place` is the deployment's dotted path; `given` says whether the file itself has a key of that
    path, which a flag may contradict: the flag wins, as on the engine's own command line. Raises
    UnknownNameError for an unknown engine, and ConfigurationError for one that is not started here
    and for a command line that cannot be read.
    """
    kind = values.get("type")
    own = _own_command_of(kind, place=place) if isinstance(kind, str) and kind != NOTHING else None
    if own is not None and own.by_user:
        return _by_command(values, place=place, kind=str(kind))
    without_effect = {}
    if "endpoints" in values:
        values = {key: value for key, value in values.items() if key != "endpoints"}
        without_effect[f"{place}.endpoints"] = "requests go to /v1, and an engine's paths are known"
    if own is None or not _is_text(values.get("extra_args") or ""):
        return EngineArguments(values=values, not_acted_on=without_effect)
    words = list(arguments.split(values.get("extra_args") or ()))
    for key in ("base_command", "command"):
        if command := values.get(key):
            words += _flags_of(str(command), own=own, kind=str(kind), place=f"{place}.{key}")
    sorting = _Sorting(values, own=own, place=place, given=given)
    for argument in arguments.read(words):
        sorting.take(argument)
    kept = {key: value for key, value in values.items() if key not in ("base_command", "command")}
    return EngineArguments(
        values={**kept, **sorting.keys, "extra_args": sorting.rest},
        notes=tuple(sorting.notes),
        not_acted_on=without_effect | sorting.not_acted_on,
    )


def _own_command_of(kind: str, *, place: str) -> OwnCommand:
    try:
        return own_command(kind)
    except UnknownNameError as error:
        raise UnknownNameError(f"type of {place}", kind, (*error.known, NOTHING)) from None
    except ConfigurationError as error:
        error.message = f"{place}.type: {error.message}"
        raise


def _by_command(values: Mapping[str, Any], *, place: str, kind: str) -> EngineArguments:
    """A server of the user's own: its command is a script, and not read."""
    if not values.get("command"):
        raise ConfigurationError(
            f"{place} needs its command",
            why=f"a {kind} server is started by a command of yours",
            fix=f"give {place}.command, such as: my-server --port $PORT",
        )
    extra = values.get("extra_args") or ""
    if _is_text(extra) and assigns_secret(" ".join(arguments.split(extra))):
        raise ConfigurationError(
            f"{place}.extra_args gives a key or a password",
            why=_SHOWN,
            fix=f"put it into an environment variable, name that under {place}.env_vars, and have "
            "the server read it there",
        )
    return EngineArguments(values=values, not_acted_on={})


class _Sorting:
    """Takes arguments one by one, each to where it belongs."""

    def __init__(
        self,
        values: Mapping[str, Any],
        *,
        own: OwnCommand,
        place: str,
        given: Callable[[str], bool],
    ) -> None:
        self._kind = str(values["type"])
        self._own = own
        self._removed = {} if _is_pinned(values) else own.removed_flags
        self._values = values
        self._place = place
        self._given = given
        self.keys: dict[str, str] = {}
        self.rest: list[str] = []
        self.notes: list[str] = []
        self.not_acted_on: dict[str, str] = {}

    def take(self, argument: Argument) -> None:
        key = self._own.key_of(argument.flag)
        words = _words(argument)
        if fix := self._removed.get(argument.flag):
            self.notes.append(
                f"{self._place}.extra_args: {self._kind} no longer has {argument.flag}; {fix}"
            )
        elif argument.values and (fix := _SECRET.get(argument.flag)):
            raise ConfigurationError(
                f"{self._place}.extra_args has {argument.flag}", why=_SHOWN, fix=fix
            )
        elif reason := _OURS.get(argument.flag):
            self.not_acted_on[f"{self._place}.extra_args {argument.flag}"] = reason
        elif key is not None and len(argument.values) == 1:
            contradicts = str(self._values.get(key)) != argument.values[0]
            if contradicts and self._given(f"{self._place}.{key}"):
                self.notes.append(
                    f"{self._place}.extra_args: {argument.flag} {argument.values[0]} is used, not "
                    f"the key {key}"
                )
            self.keys[key] = argument.values[0]
        elif not _contains(self.rest, words):
            self.rest += words


def _words(argument: Argument) -> tuple[str, ...]:
    """The argument's words as they were written; an attached value is part of the first."""
    name, equals, _ = argument.given.partition("=")
    attached = bool(equals) or (name.startswith("-O") and name != "-O")
    return (argument.given, *argument.values[1 if attached else 0 :])


def _contains(words: Sequence[str], part: Sequence[str]) -> bool:
    """Whether `part` stands in `words` as it is: base_command and extra_args may both have it."""
    return any(
        tuple(words[at : at + len(part)]) == tuple(part) for at in range(len(words) - len(part) + 1)
    )


def _is_text(value: Any) -> bool:
    """Whether a value can be a command line; anything else is left for the settings to refuse."""
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(word, str) for word in value)
    )


def _is_pinned(values: Mapping[str, Any]) -> bool:
    """Whether the engine may be another version than the one whose flags are known here."""
    return bool(values.get("version") or values.get("python"))


def _flags_of(command: str, *, own: OwnCommand, kind: str, place: str) -> list[str]:
    """The flags of a command that starts the engine. Raises ConfigurationError for a script."""
    match = own.start.match(f"{command} ") if own.start is not None else None
    rest = command[match.end() :] if match else ""
    if match is None or _SHELL.search(rest.strip()):
        raise ConfigurationError(
            f"{place} is a script of its own, not the command line of {kind}",
            why=f"{kind} is started and watched here, which such a script would escape",
            fix="put the flags into extra_args and what comes before them into pre_cmd; several "
            "nodes: deployment: vllm_ray; a server by your own command: deployment: generic",
        )
    words = shlex.split(rest)
    named = bool(words) and not words[0].startswith("-")  # the model
    return words[1:] if named else words
