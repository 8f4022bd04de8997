"""Exports runs: finds the exporters that a launch file or a command line asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml

from enginehouse.core.errors import ConfigurationError, JobError, RunNotFoundError, UnknownNameError
from enginehouse.deployment.configuration import merged, parse, read_yaml
from enginehouse.jobs.exporters.base import Exporter
from enginehouse.jobs.exporters.figures import read_figures
from enginehouse.jobs.exporters.registry import EXPORTERS
from enginehouse.jobs.launch import fetch
from enginehouse.jobs.plan import RUN
from enginehouse.jobs.records import JobRecords
from enginehouse.runtime.context import Context
from enginehouse.store.runs import Run, open_run

_ELSEWHERE = {
    "gsheets": "there is no exporter to Google Sheets; csv can be imported there",
    "jet": "it is a service of NVIDIA's own",
}


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run's figures are now."""

    run: str
    to: str
    place: str
    figures: int


@dataclass(frozen=True, kw_only=True)
class Destination:
    """An exporter that is ready to be used.

    `not_acted_on` has the keys without effect, and why.
    """

    name: str
    exporter: Exporter
    log_metrics: tuple[str, ...]
    not_acted_on: Mapping[str, str]


def destination(name: str, values: Mapping[str, Any], *, origin: str) -> Destination:
    """The exporter `name` with its settings. Imports no tracker.

    Raises UnknownNameError, and ConfigurationError for wrong settings, naming `origin`.
    """
    try:
        kind = EXPORTERS.load(name)
    except UnknownNameError as error:
        error.message = f"{origin}: {error.message}"
        raise
    settings_class = kind.settings_class
    ignored = {
        f"export.{name}.{key}": settings_class.not_acted_on[key]
        for key in values
        if key in settings_class.not_acted_on
    }
    kept = {key: value for key, value in values.items() if key not in settings_class.not_acted_on}
    settings = parse(settings_class, kept, origin=origin)
    return Destination(
        name=name,
        exporter=kind(settings),
        log_metrics=settings.log_metrics,
        not_acted_on=ignored,
    )


def destinations(
    sections: Mapping[str, Any], *, wanted: Sequence[str] | None = None, origin: str
) -> list[Destination]:
    """The exporters of the section `export` of a launch file: all, or those that are `wanted`.

    Sections of the original launcher without an exporter are left out: see `without_exporter`.
    Raises UnknownNameError and ConfigurationError.
    """
    names = list(sections) if wanted is None else list(wanted)
    return [
        destination(name, _section(sections, name, origin), origin=f"{origin}: export.{name}")
        for name in names
        if name not in _ELSEWHERE
    ]


def without_exporter(names: Iterable[str]) -> dict[str, str]:
    """Which of these sections have no effect here, and why."""
    return {f"export.{name}": _ELSEWHERE[name] for name in names if name in _ELSEWHERE}


def read_destinations(path: Path) -> list[Destination]:
    """The exporters of a file with a section `export`, which holds one for each exporter.

    Raises UnknownNameError and ConfigurationError.
    """
    return destinations(_sections(path), origin=str(path))


def _sections(path: Path) -> dict[str, Any]:
    sections = read_yaml(path).get("export")
    if not isinstance(sections, Mapping) or not sections:
        raise ConfigurationError(
            f"{path} names no exporter",
            why="its key 'export' is missing or empty",
            fix=f"put a section for each exporter below it: {', '.join(EXPORTERS.names())}",
        )
    return {name: values for name, values in sections.items() if name != "env_vars"}


def choose_destinations(
    names: Sequence[str], *, file: Path | None, out: Path | None, words: Sequence[str]
) -> list[Destination]:
    """The exporters `names`, or all of the file's; `out` and `words` go before its settings.

    Raises UnknownNameError and ConfigurationError.
    """
    sections = _sections(file) if file else {}
    chosen = names or list(sections)
    if len(chosen) > 1 and (out or words):
        raise ConfigurationError(
            "--out and -o work with a single exporter, but several were given",
            fix="export to one at a time, or put the settings into a file for --config",
        )
    given: dict[str, Any] = {"path": str(out)} if out else {}
    own = {
        name: merged(merged(_section(sections, name, str(file)), given), overrides(words, to=name))
        for name in chosen
    }
    return destinations(own, origin=str(file or "the command line"))


async def find_run(reference: str, context: Context, *, into: Path) -> Run:
    """A run by its id or folder, or that of a job by the job's id, fetched below `into` if need be.

    Raises RunNotFoundError, JobError and StoreError.
    """
    try:
        return await asyncio.to_thread(open_run, context.layout, reference)
    except RunNotFoundError as error:
        try:
            record = await asyncio.to_thread(JobRecords(context.layout).find, reference)
        except JobError as second:
            raise (error if second.kind == "unknown" else second) from None
    folder = await fetch(record, context, into=into / record.id)
    return await asyncio.to_thread(open_run, context.layout, str(folder / RUN))


def export_run(run: Run, to: Sequence[Destination]) -> list[Exported]:
    """Export a run's figures, or update them where they are. Blocking.

    Raises ConfigurationError for a run without figures, ExportError, and StoreError.
    """
    figures = read_figures(run)
    exported = []
    for one in to:
        chosen = figures.only(one.log_metrics)
        place = one.exporter.export(chosen)
        exported.append(
            Exported(run=figures.labels.run, to=one.name, place=place, figures=len(chosen.figures))
        )
    return exported


def overrides(words: Sequence[str], *, to: str) -> dict[str, Any]:
    """The settings in words such as `tags.team=eval`; `export.NAME.` may stand before the key.

    Values are read as YAML. Raises ConfigurationError.
    """
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.lstrip("+").removeprefix(f"export.{to}.").partition("=")
        if not equals or not key:
            raise ConfigurationError(f"-o {word!r} is not KEY=VALUE")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigurationError(f"-o {word!r} cannot be read", why=str(error)) from error
        for part in reversed(key.split(".")):
            value = {part: value}
        values = merged(values, value)
    return values


def _section(sections: Mapping[str, Any], name: str, origin: str) -> Mapping[str, Any]:
    values = sections.get(name) or {}
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"{origin}: 'export.{name}' is not a mapping")
    return values
