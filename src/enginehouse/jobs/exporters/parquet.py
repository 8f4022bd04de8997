"""A Parquet file: a row for each figure, with the labels of its run."""

from __future__ import annotations

import io
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar

from enginehouse.core.errors import ExportError
from enginehouse.jobs.exporters.figures import COLUMNS, ExportedRun, rows_of
from enginehouse.jobs.exporters.file import FileSettings, locked, not_ours
from enginehouse.store.files import write_whole

if TYPE_CHECKING:
    import pyarrow as pa


class ParquetExporter:
    """A table with typed columns; needs pa."""

    settings_class: ClassVar[type[FileSettings]] = FileSettings

    def __init__(self, settings: FileSettings) -> None:
        self._path = settings.path.expanduser().absolute()

    def export(self, run: ExportedRun) -> str:
        """Replace the run's rows, or add them at the end."""
        try:
            import pyarrow as pa
            from pyarrow import parquet
        except ImportError as error:
            raise ExportError(
                "Parquet files need pyarrow",
                kind="missing_package",
                why=str(error),
                fix="pip install 'enginehouse[parquet]'",
            ) from error
        schema = _schema()
        with locked(self._path) as content:
            rows: list[dict[str, Any]] = []
            if content:
                try:
                    table = parquet.read_table(io.BytesIO(content))
                except (pa.ArrowException, OSError) as error:
                    raise not_ours(self._path, str(error)) from error
                if not table.schema.equals(schema):
                    names = ", ".join(table.schema.names)
                    raise not_ours(self._path, f"it has other columns or types: {names}")
                rows = table.to_pylist()
            others = [row for row in rows if row["run"] != run.labels.run]
            table = pa.Table.from_pylist([*others, *rows_of(run)], schema=schema)
            written = io.BytesIO()
            parquet.write_table(table, written)
            write_whole(self._path, written.getvalue())
        return str(self._path)


def _schema() -> pa.Schema:
    import pyarrow as pa

    types = {
        str: pa.string(),
        int: pa.int64(),
        float: pa.float64(),
        bool: pa.bool_(),
        datetime: pa.timestamp("us", tz="UTC"),
    }
    return pa.schema(
        [
            pa.field(name, next(t for kind, t in types.items() if kind in _kinds(annotation)))
            for name, annotation in COLUMNS.items()
        ]
    )


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """The types that an annotation allows."""
    return getattr(annotation, "__args__", (annotation,))
