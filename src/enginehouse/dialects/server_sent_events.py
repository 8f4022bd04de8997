"""Server-sent events, as far as completions use them (WHATWG HTML, section 9.2.6)."""

from __future__ import annotations


class EventParser:
    """Turns a byte stream, cut anywhere, into the data of its events. Comments are skipped."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []  # the pieces of a line that has not ended
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of every event that `chunk` completes."""
        head, newline, chunk = chunk.partition(b"\n")
        self._rest.append(head)
        if not newline:
            return []
        lines = [b"".join(self._rest), *chunk.split(b"\n")]
        self._rest = [lines.pop()]
        events: list[bytes] = []
        for line in lines:
            self._line(line.removesuffix(b"\r"), events)
        return events

    def close(self) -> list[bytes]:
        """The data of a last event that had no blank line after it."""
        events: list[bytes] = []
        for line in (b"".join(self._rest), b""):
            self._line(line.removesuffix(b"\r"), events)
        self._rest = []
        return events

    def _line(self, line: bytes, events: list[bytes]) -> None:
        if not line:
            if self._data:
                events.append(b"\n".join(self._data))
                self._data = []
            return
        field, _, value = line.partition(b":")
        if field == b"data":
            self._data.append(value.removeprefix(b" "))
