"""The service's log: one JSON object per line, in a file that rotates."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

import orjson

from enginehouse.runtime.context import Context

_ROOM: Final = "enginehouse.tinker"
_LARGEST: Final = 10_000_000  # bytes of one file
_KEPT: Final = 5  # older files
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """A record as one line: time, level, logger, message, and every extra field."""

    def format(self, record: logging.LogRecord) -> str:
        """Say it as JSON."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {n: value for n, value in vars(record).items() if n not in _STANDARD}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(fields, default=str).decode()


@contextmanager
def logging_to(file: Path) -> Iterator[None]:
    """Write what the service logs into `file` for the length of the block. Raises OSError."""
    handler = RotatingFileHandler(file, maxBytes=_LARGEST, backupCount=_KEPT, encoding="utf-8")
    handler.setFormatter(JsonLines())
    room = logging.getLogger(_ROOM)
    level, propagate = room.level, room.propagate
    room.addHandler(handler)
    room.setLevel(logging.INFO)
    room.propagate = False
    try:
        yield
    finally:
        room.removeHandler(handler)
        room.setLevel(level)
        room.propagate = propagate
        handler.close()


def noting_in_log(context: Context) -> Context:
    """The same context, whose notes are logged, too."""
    room = logging.getLogger(_ROOM)

    def notify(note: str) -> None:
        room.info(note)
        context.notify(note)

    return replace(context, notify=notify)
