"""Reads a launch file: composed, checked, its variables sorted out, and its doubts noted."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_origin

from enginehouse.commands.kept_variables import is_kept
from enginehouse.core.errors import ConfigurationError, UnknownNameError, nearest
from enginehouse.deployment.configuration import parse
from enginehouse.jobs.composition import Composition, compose_launch, leaves, require_served
from enginehouse.jobs.configuration import LaunchConfig, LaunchDocument, texts
from enginehouse.jobs.engine_arguments import sort_arguments
from enginehouse.jobs.executors.base import ExecutionSettings, ExecutionVariables
from enginehouse.jobs.executors.registry import EXECUTORS
from enginehouse.jobs.variables import (
    Variable,
    Variables,
    assigns_secret,
    holds_token,
    parse_variable,
)
from enginehouse.jobs.without_effect import keys_without_effect

_FIX = "docs/launch.md explains the file; docs/coming-from.md lists the keys of the launcher"
HIDDEN = "(not shown)"
_SHELL_KEYS = {"pre_cmd", "post_cmd", "command", "extra_docker_args"}
_SHORTEST_SECRET = 8  # characters; a shorter one may be a word that stands elsewhere by chance
_SERVER_VARIABLES = ("execution.env_vars.deployment", "deployment.env_vars")
_JOB_VARIABLES = (
    "execution.env_vars.evaluation",
    "execution.env_vars.export",
    "evaluation.env_vars",
    "export.env_vars",
)


def read_launch(
    path: Path, *, overrides: Sequence[str] = (), tasks: Sequence[str] = ()
) -> LaunchConfig:
    """The configuration in a launch file, with Hydra's overrides. Blocking.

    With `tasks`, only those of the file's tasks: a name is that of all tasks called so, and
    NAME.INDEX that of one.

    Raises ConfigurationError for a key that is unknown or has no value, a value that is wrong,
    and an executor that does not exist. No value of a secret is read yet.
    """
    return check_launch(with_tasks(compose_launch(path, overrides=overrides), tasks))


def with_tasks(composition: Composition, names: Sequence[str]) -> Composition:
    """The composition with the tasks of these names alone; all of them if there is no name."""
    evaluation = composition.values.get("evaluation")
    if not names or not isinstance(evaluation, Mapping):
        return composition
    tasks = evaluation.get("tasks")
    if not isinstance(tasks, list):
        return composition
    known = [str(task.get("name")) if isinstance(task, Mapping) else "" for task in tasks]
    for name in names:
        if not any(name in (own, f"{own}.{index}") for index, own in enumerate(known)):
            raise UnknownNameError("task in this file", name, known)
    kept = [index for index, own in enumerate(known) if own in names or f"{own}.{index}" in names]
    values = {**composition.values, "evaluation": {**evaluation, "tasks": [tasks[i] for i in kept]}}
    start = "evaluation.tasks."
    lines = {key: line for key, line in composition.lines.items() if not key.startswith(start)}
    for new, old in enumerate(kept):
        for key, line in composition.lines.items():
            if f"{key}.".startswith(f"{start}{old}."):
                lines[f"{start}{new}{key.removeprefix(f'{start}{old}')}"] = line
    return replace(composition, values=values, lines=lines)


def check_launch(composition: Composition) -> LaunchConfig:
    """The configuration of a composed launch file. Raises ConfigurationError."""
    origin = str(composition.path)
    without_effect: dict[str, str] = {}
    notes: list[str] = []
    values = copy.deepcopy(dict(composition.values))
    if isinstance(values.get("evaluation"), list):  # the oldest files list tasks there
        values["evaluation"] = {"tasks": values["evaluation"]}
    settings_class = _settings_class(values.get("execution"), origin)
    chosen = values.pop("execution")
    if "execution" in composition.overridden:  # the file may be written for another executor
        chosen = _without_others(settings_class, chosen, without_effect)
    execution = _acted_on(settings_class, chosen, "execution", without_effect)
    for holder, name, place in _deployments(values):
        require_served(holder[name], place=place)
        ordered = sort_arguments(
            holder[name], place=place, given=lambda key: key in composition.lines
        )
        holder[name] = ordered.values
        without_effect |= ordered.not_acted_on
        notes += [f"{note}{_line_of(composition, place)}" for note in ordered.notes]
    document = _acted_on(LaunchDocument, values, "", without_effect)
    checked = _parse(LaunchDocument, document, origin=origin)
    settings = _parse(settings_class, execution, origin=f"{origin}: execution")
    without_effect |= {f"execution.{key}": why for key, why in settings.without_effect.items()}
    without_effect |= keys_without_effect(checked, given=composition.gives)
    settings = settings.model_copy(update={"env_vars": ExecutionVariables()})  # read below
    deployment = checked.deployment.with_all_copies(
        nodes=max(settings.nodes // settings.instances, 1)
    )
    settings = settings.completed(deployment)
    auxiliary = (f"auxiliary_deployments.{name}" for name in checked.auxiliary_deployments)
    for place in ("deployment", *auxiliary):
        for key, why in settings.deployment_without_effect.items():
            if composition.gives(f"{place}.{key}"):
                without_effect[f"{place}.{key}"] = why
    export = _exports(checked.export, settings, origin=origin, without_effect=without_effect)
    variables = _VariableReader(composition, os.environ)
    everywhere = variables.read("env_vars")
    job = everywhere.with_others(variables.read(*_JOB_VARIABLES, *_task_sections(checked)))
    keys = {key: Variable(name=key, host=key) for key in _key_names(checked)}
    job = Variables(by_name=keys).with_others(job)
    server = everywhere.with_others(variables.read(*_SERVER_VARIABLES))
    if not deployment.deployed:
        server = Variables()
    auxiliary_variables = {
        name: everywhere.with_others(variables.read(f"auxiliary_deployments.{name}.env_vars"))
        for name in checked.auxiliary_deployments
    }
    _require_no_secrets(variables, composition)
    _require_one_value(job, server)
    return LaunchConfig(
        origin=origin,
        name=checked.name or composition.path.stem,
        execution=settings,
        deployment=deployment,
        auxiliary_deployments={
            name: auxiliary.with_all_copies(nodes=1)
            for name, auxiliary in checked.auxiliary_deployments.items()
        },
        target=checked.target,
        evaluation=checked.evaluation,
        export=export,
        job_variables=job,
        server_variables=server,
        auxiliary_variables=auxiliary_variables,
        notes=(*notes, *variables.notes),
        not_acted_on=without_effect,
        values=variables.redacted,
    )


def _exports(
    sections: Mapping[str, Any],
    settings: ExecutionSettings,
    *,
    origin: str,
    without_effect: dict[str, str],
) -> dict[str, Any]:
    """The sections that act at the end of the job, whose settings are right."""
    sections = {name: values for name, values in sections.items() if name != "env_vars"}
    wanted = settings.auto_export.destinations if settings.auto_export else tuple(sections)
    if not wanted:
        return {}
    from enginehouse.jobs.export import destinations, without_exporter

    without_effect |= without_exporter(wanted)
    chosen = destinations(sections, wanted=wanted, origin=origin)
    for one in chosen:
        without_effect |= one.not_acted_on
    return {one.name: sections.get(one.name) or {} for one in chosen}


def _deployments(values: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, str]]:
    """The mapping that holds each deployment, its key there, and its dotted path."""
    auxiliary = values.get("auxiliary_deployments")
    holders = [(values, "deployment", "deployment")]
    if isinstance(auxiliary, dict):
        holders += [(auxiliary, name, f"auxiliary_deployments.{name}") for name in auxiliary]
    return (one for one in holders if isinstance(one[0].get(one[1]), dict))


def _line_of(composition: Composition, place: str) -> str:
    key = f"{place}.extra_args"
    return f" ({composition.place(key)})" if key in composition.lines else ""


def _settings_class(execution: Any, origin: str) -> type[ExecutionSettings]:
    kind = execution.get("type") if isinstance(execution, Mapping) else None
    if not isinstance(kind, str):
        raise ConfigurationError(
            f"{origin}: 'execution.type' is missing",
            why="the file does not choose an executor",
            fix=f"put `- execution: local` under defaults; known: {', '.join(EXECUTORS.names())}",
        )
    settings_class: type[ExecutionSettings] = EXECUTORS.load(kind).settings_class
    return settings_class


def _parse(kind: Any, values: Mapping[str, Any], *, origin: str) -> Any:
    try:
        return parse(kind, values, origin=origin)
    except ConfigurationError as error:
        error.fix = _FIX
        raise


def _acted_on(kind: Any, values: Any, where: str, without_effect: dict[str, str]) -> Any:
    """The values without the keys that have no effect, which are added to `without_effect`."""
    if isinstance(values, list):
        return [
            _acted_on(kind, inner, f"{where}.{index}", without_effect)
            for index, inner in enumerate(values)
        ]
    if not isinstance(values, Mapping):
        return values
    kept = {}
    for key, inner in values.items():
        place = f"{where}.{key}" if where else str(key)
        reason = kind.not_acted_on.get(key) or _reason_for_unknown(kind, key)
        if reason is not None:
            without_effect[place] = reason
            continue
        section = _section_of(kind, key)
        if section is None:
            kept[key] = inner
        elif _is_mapping_of_sections(kind, key) and isinstance(inner, Mapping):
            kept[key] = {
                name: _acted_on(section, part, f"{place}.{name}", without_effect)
                for name, part in inner.items()
            }
        else:
            kept[key] = _acted_on(section, inner, place, without_effect)
    return kept


def _without_others(
    kind: type[ExecutionSettings], values: Mapping[str, Any], without_effect: dict[str, str]
) -> Mapping[str, Any]:
    """The values without keys that only other executors have, added to `without_effect`."""
    own = kind.model_fields.keys() | kind.not_acted_on.keys()
    unknown = values.keys() - own
    others: dict[str, list[str]] = {key: [] for key in unknown}
    for name in EXECUTORS.names() if unknown else ():
        other: type[ExecutionSettings] = EXECUTORS.load(name).settings_class
        for key in unknown & (other.model_fields.keys() | other.not_acted_on.keys()):
            others[key].append(name)
    for key, names in sorted(others.items()):
        if names:
            without_effect[f"execution.{key}"] = f"it is a key of {', '.join(names)}"
    return {key: value for key, value in values.items() if not others.get(key)}


def _reason_for_unknown(kind: Any, key: str) -> str | None:
    """Why an unknown key has no effect; None if it is known, or may be a misspelt known one."""
    reason: str | None = getattr(kind, "others_not_acted_on", None)
    known = kind.model_fields
    return None if key in known or nearest(str(key), known) else reason


def _section_of(kind: Any, key: str) -> Any:
    """The section that a key holds, alone, optionally, in a tuple or in a mapping."""
    field = kind.model_fields.get(key)
    return _section_in(field.annotation) if field is not None else None


def _section_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and hasattr(annotation, "not_acted_on"):
        return annotation
    parts = (_section_in(part) for part in get_args(annotation))
    return next((part for part in parts if part is not None), None)


def _is_mapping_of_sections(kind: Any, key: str) -> bool:
    origin = get_origin(kind.model_fields[key].annotation)
    return isinstance(origin, type) and issubclass(origin, Mapping)


class _VariableReader:
    """Reads sections of variables, noting doubts and hiding the values of secrets.

    `redacted` are the composition's values, in which secrets that were read are hidden; `secrets`
    are their values.
    """

    def __init__(self, composition: Composition, here: Mapping[str, str]) -> None:
        self._composition = composition
        self._here = here
        self.redacted: dict[str, Any] = copy.deepcopy(dict(composition.values))
        self.secrets: set[str] = set()
        self.notes: list[str] = []

    def read(self, *sections: str) -> Variables:
        """The variables of some sections, by their dotted paths; later ones win."""
        read = {}
        for section in sections:
            holder = _at(self.redacted, section)
            for name, text in texts(holder).items() if isinstance(holder, dict) else ():
                variable = self._parse(f"{section}.{name}", name, text)
                if variable.literal is not None and variable.secret:
                    holder[name] = HIDDEN
                    self.secrets.add(variable.literal)
                read[name] = variable
        return Variables(by_name=read)

    def _parse(self, key: str, name: str, text: str) -> Variable:
        place = f"{key} ({self._composition.place(key)})"
        try:
            variable = parse_variable(name, text, here=self._here)
        except ConfigurationError as error:
            error.message = f"{place}: {error.message}"
            raise
        if variable.literal is not None and variable.secret:
            self.notes.append(
                f"{place} holds a secret as plain text; write host:{name} and export {name} instead"
            )
        elif variable.host == text:
            self.notes.append(
                f"{place}: {text} is read as the name of a variable on this machine; write "
                f"host:{text}"
            )
        return variable


def _key_names(document: LaunchDocument) -> list[str]:
    """The variables here that hold the keys of servers which run already."""
    evaluation = document.evaluation
    judges = [evaluation.settings_of(task).params.extra.judge for task in evaluation.tasks]
    names = [judge.api_key for judge in judges if judge]
    if not document.deployment.deployed:
        names.append(document.target.api_endpoint.api_key_name)
    return [name for name in names if name]


def _task_sections(document: LaunchDocument) -> list[str]:
    return [f"evaluation.tasks.{index}.env_vars" for index in range(len(document.evaluation.tasks))]


def _at(values: Any, key: str) -> Any:
    """What is at a dotted path; None if nothing is."""
    for step in key.split("."):
        if isinstance(values, Mapping):
            values = values.get(step)
        elif isinstance(values, list) and step.isdecimal() and int(step) < len(values):
            values = values[int(step)]
        else:
            return None
    return values


def _require_one_value(job: Variables, server: Variables) -> None:
    """What may not be stored reaches the server through the job's environment, with one value."""
    for name in sorted(job.by_name.keys() & server.by_name.keys()):
        one, other = job.by_name[name], server.by_name[name]
        if one != other and (other.secret or other.literal is None or not is_kept(name)):
            raise ConfigurationError(
                f"{name} has two values: {one.source} for the evaluation and {other.source} for "
                "the server",
                why="both run in one job and share its environment",
                fix="use one value that serves both, or give them different names",
            )


def _require_no_secrets(variables: _VariableReader, composition: Composition) -> None:
    """Raise ConfigurationError for a secret anywhere but in a section of variables."""
    copied = [secret for secret in variables.secrets if len(secret) >= _SHORTEST_SECRET]
    for key, value in leaves(variables.redacted):
        if isinstance(value, str) and (
            holds_token(value)
            or _is_secret_literal(key, value)
            or any(secret in value for secret in copied)
        ):
            raise ConfigurationError(
                f"{key} ({composition.place(key)}) holds a token or a password",
                why="it would be written into scripts and records, and shown by ps",
                fix="put it into an environment variable, and give its name under env_vars",
            )


def _is_secret_literal(key: str, value: str) -> bool:
    """Whether it is a secret in lines of shell, or in variables that an executor reads itself."""
    *_, section, name = ("", *key.split("."))
    if _SHELL_KEYS & {section, name}:  # a text, or a word of a list
        return assigns_secret(value)
    if section not in ("env_vars", "envs") or value == HIDDEN:
        return False
    variable = parse_variable(name, value, here={})
    return variable.literal is not None and variable.secret
