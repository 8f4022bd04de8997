"""A JSON file: an object for each run, with its labels and figures."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from enginehouse.jobs.exporters.figures import ExportedRun
from enginehouse.jobs.exporters.file import FileSettings, locked, not_ours
from enginehouse.store.files import write_whole

_FORMAT = 1


class _Document(msgspec.Struct, kw_only=True):
    format: int
    runs: list[ExportedRun]


class JsonExporter:
    """One document `{"format": 1, "runs": [...]}`, with the runs in the order of their export."""

    settings_class: ClassVar[type[FileSettings]] = FileSettings

    def __init__(self, settings: FileSettings) -> None:
        self._path = settings.path.expanduser().absolute()

    def export(self, run: ExportedRun) -> str:
        """Replace the run in the file, or add it."""
        with locked(self._path) as content:
            runs = self._read(content) if content else []
            place = next((n for n, r in enumerate(runs) if r.labels.run == run.labels.run), None)
            if place is None:
                runs.append(run)
            else:
                runs[place] = run
            document = _Document(format=_FORMAT, runs=runs)
            encoded = msgspec.json.format(msgspec.json.encode(document))
            write_whole(self._path, encoded + b"\n")
        return str(self._path)

    def _read(self, content: bytes) -> list[ExportedRun]:
        try:
            document = msgspec.json.decode(content, type=_Document)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise not_ours(self._path, str(error)) from error
        if document.format != _FORMAT:
            why = f"it has format {document.format}, and this version writes {_FORMAT}"
            raise not_ours(self._path, why)
        return document.runs
