"""Exports runs: finds the exporters that a launch file or a command line asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import yaml

from enginehouse.core.errors import ConfigurationError
from enginehouse.deployment.configuration import merged, parse
from enginehouse.jobs.exporters.base import Exporter
from enginehouse.jobs.exporters.figures import read_figures
from enginehouse.jobs.exporters.registry import EXPORTERS
from enginehouse.store.runs import Run

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
    kind = EXPORTERS.load(name)
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

    Sections for services without an exporter are in `without_exporter`. Raises UnknownNameError
    and ConfigurationError.
    """
    names = list(sections) if wanted is None else list(wanted)
    return [
        destination(name, _section(sections, name, origin), origin=f"{origin}: export.{name}")
        for name in names
        if name not in _ELSEWHERE
    ]


def without_exporter(sections: Mapping[str, Any]) -> dict[str, str]:
    """The sections of the original launcher that have no effect here, and why."""
    return {f"export.{name}": why for name, why in _ELSEWHERE.items() if name in sections}


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
