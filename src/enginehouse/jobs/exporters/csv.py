"""A CSV file: a row for each figure, with the labels of its run."""

from __future__ import annotations

import csv
import io
from typing import Any, ClassVar

from enginehouse.jobs.exporters.figures import COLUMNS, ExportedRun, rows_of
from enginehouse.jobs.exporters.file import FileSettings, locked, not_ours
from enginehouse.store.files import write_whole


class CsvExporter:
    """A table with a header, in UTF-8; what is not known is empty, true and false are words."""

    settings_class: ClassVar[type[FileSettings]] = FileSettings

    def __init__(self, settings: FileSettings) -> None:
        self._path = settings.path.expanduser().absolute()

    def export(self, run: ExportedRun) -> str:
        """Replace the run's rows, or add them at the end."""
        own = [{name: _text(value) for name, value in row.items()} for row in rows_of(run)]
        with locked(self._path) as content:
            rows = self._read(content) if content else []
            others = [row for row in rows if row["run"] != run.labels.run]
            text = io.StringIO()
            writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows([*others, *own])
            write_whole(self._path, text.getvalue().encode())
        return str(self._path)

    def _read(self, content: bytes) -> list[dict[str, str]]:
        try:
            reader = csv.DictReader(io.StringIO(content.decode(), newline=""), strict=True)
            rows = list(reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise not_ours(self._path, str(error)) from error
        if reader.fieldnames != list(COLUMNS):
            raise not_ours(self._path, f"its columns are {', '.join(reader.fieldnames or [])}")
        if any(None in row or None in row.values() for row in rows):
            raise not_ours(self._path, "not every row has as many values as there are columns")
        return rows


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
