"""The original launcher's exporter to files: a folder, a format and a file's name."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from enginehouse.jobs.exporters.base import Exporter, ExportSettings
from enginehouse.jobs.exporters.csv import CsvExporter
from enginehouse.jobs.exporters.figures import ExportedRun
from enginehouse.jobs.exporters.file import FileSettings
from enginehouse.jobs.exporters.json import JsonExporter


class LocalSettings(ExportSettings):
    """A folder with one file of figures."""

    output_dir: Path = Path("enginehouse-results")
    """The folder."""
    format: Literal["json", "csv"] = "json"
    """The file's format."""
    output_filename: str | None = None
    """The file's name; by default processed_results.json or .csv."""


class LocalExporter:
    """Writes JSON or CSV, as the exporters of those names do."""

    settings_class: ClassVar[type[LocalSettings]] = LocalSettings

    def __init__(self, settings: LocalSettings) -> None:
        name = settings.output_filename or f"processed_results.{settings.format}"
        file = FileSettings(path=settings.output_dir / name)
        self._exporter: Exporter = (
            JsonExporter(file) if settings.format == "json" else CsvExporter(file)
        )

    def export(self, run: ExportedRun) -> str:
        """Replace the run in the file, or add it."""
        return self._exporter.export(run)
