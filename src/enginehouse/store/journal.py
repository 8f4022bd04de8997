"""Journals: append-only JSON lines that survive a kill at any moment."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import msgspec

from enginehouse.core.errors import StoreError

Record = TypeVar("Record")

_BLOCK = 1 << 16


class Entry(msgspec.Struct, Generic[Record], frozen=True, gc=False):
    """One record and the byte offset at which its line begins."""

    offset: int
    record: Record


class Journal:
    """A journal open for appending; close it, or use it in `with`.

    Opening cuts off what a kill or a power cut left at the end (a line without its newline, or
    lines that are no JSON); `repaired_bytes` says how much. The caller makes sure that nobody
    else appends (see `Run.hold`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._encoder = msgspec.json.Encoder()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _failure(path, "cannot open", error) from error
        try:
            size = os.fstat(self._file).st_size
            self._end = _intact_length(self._file, size)
            self.repaired_bytes = size - self._end
            if self.repaired_bytes:
                os.ftruncate(self._file, self._end)
        except OSError as error:
            os.close(self._file)
            raise _failure(path, "cannot read the end of", error) from error

    def append(self, record: Any) -> int:
        """Write `record` as one line with one write() call; returns the line's offset.

        When it returns, the operating system has the line: it survives kill -9 of this process
        (not a power cut). Raises StoreError, and leaves nothing of the line, when it cannot be
        written whole. Blocking, for the time of one write to the page cache.
        """
        line = self._encoder.encode(record) + b"\n"
        offset = self._end
        try:
            written = os.write(self._file, line)
        except OSError as error:
            self._take_back()
            raise _failure(self.path, "cannot append to", error) from error
        if written != len(line):
            self._take_back()
            raise _failure(self.path, "cannot append to", "only a part of the line was taken")
        self._end += written
        return offset

    def _take_back(self) -> None:
        with suppress(OSError):  # a device such as /dev/full has no length
            os.ftruncate(self._file, self._end)

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def read_journal(path: Path, record_type: Any) -> Iterator[Entry[Any]]:
    """Every record of the journal in order, decoded as `record_type`; none if there is no file.

    Memory is that of one line. A torn end is passed over (a writer may be at work). Raises
    StoreError, naming file and line, for a broken line before the end and for a whole line that
    is not a `record_type`.
    """
    decoder = msgspec.json.Decoder(record_type)
    offset = 0
    try:
        file = path.open("rb", buffering=1 << 18)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _failure(path, "cannot open", error) from error
    with file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = decoder.decode(line)
            except msgspec.ValidationError as error:
                raise _broken(
                    path, number, f"it is no record that is known here: {error}"
                ) from error
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                if not any(_is_json(rest) for rest in file):
                    return
                raise _broken(path, number, str(error)) from error
            yield Entry(offset, record)
            offset += len(line)


def read_record(path: Path, record_type: Any, *, offset: int) -> Any:
    """The record whose line begins at `offset` (from `Journal.append` or an `Entry`)."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return msgspec.json.decode(file.readline(), type=record_type)
    except OSError as error:
        raise _failure(path, "cannot read", error) from error
    except msgspec.DecodeError as error:
        raise StoreError(f"{path}: no record begins at byte {offset}", why=str(error)) from error


def _intact_length(file: int, size: int) -> int:
    """Length of the file without a torn end."""
    end = size
    while end:
        start = _last_line_start(file, end)
        line = os.pread(file, end - start, start)
        if line.endswith(b"\n") and _is_json(line):
            return end
        end = start
    return 0


def _last_line_start(file: int, end: int) -> int:
    """Where the line that ends at `end` begins."""
    position = end - 1  # the line's own newline, if it has one, does not count
    while position > 0:
        start = max(0, position - _BLOCK)
        newline = os.pread(file, position - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        position = start
    return 0


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def _broken(path: Path, number: int, why: str) -> StoreError:
    return StoreError(
        f"{path}, line {number} is broken",
        why=why,
        fix="restore the file from a copy, or start a new run; nothing was changed",
    )


def _failure(path: Path, what: str, why: OSError | str) -> StoreError:
    try:
        free = f"{shutil.disk_usage(path.parent).free / 1e6:,.1f} MB free there"
    except OSError:
        free = "free space unknown"
    return StoreError(
        f"{what} {path}",
        why=f"{why} ({free})",
        fix="make room or check the permissions, then resume: what was written is whole",
    )
