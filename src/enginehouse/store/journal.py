"""Journals: append-only JSON lines that survive a kill at any moment."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, get_args

import msgspec

from enginehouse.core.errors import StoreError
from enginehouse.store.private import open_private

Record = TypeVar("Record")

_BLOCK = 1 << 16
_LONGEST_BEGINNING = 100  # bytes
_MOST_REPAIRS = 10_000
# The first bytes of files that are not journals, what the files are, and what to do about it.
_FOREIGN = (
    (b"version https://git-lfs", "it is a Git LFS pointer", "fetch the file with `git lfs pull`"),
    (b"/annex/objects/", "it is a git-annex pointer", "fetch the file with `git annex get`"),
    (b"\x1f\x8b", "it is compressed with gzip", "unpack it with gunzip"),
    (b"\x28\xb5\x2f\xfd", "it is compressed with zstd", "unpack it with `zstd -d`"),
    (b"\xff\xfe", "it is UTF-16 text", "convert it back to UTF-8 without a byte order mark"),
    (b"\xfe\xff", "it is UTF-16 text", "convert it back to UTF-8 without a byte order mark"),
    (b"\xef\xbb\xbf", "it begins with a byte order mark", "save it as UTF-8 without one"),
)


class Entry(msgspec.Struct, Generic[Record], frozen=True, gc=False):
    """One record and the byte offset at which its line begins."""

    offset: int
    record: Record


class Repair(msgspec.Struct, frozen=True, kw_only=True):
    """A damaged end of a journal: `size` bytes, which were moved to the file `kept` beside it."""

    size: int
    kept: Path

    def __str__(self) -> str:
        return (
            f"the journal's end was damaged: its last {self.size:,} bytes were moved to {self.kept}"
        )


class Journal:
    """A journal open for appending; close it, or use it in `with`.

    `first` is the Struct type of the first line. A file that begins with anything else is refused
    (StoreError) and left unchanged. What a kill or a power cut left at the end (a line without its
    newline, or lines that are not JSON) is moved into a file beside the journal, named by `repair`.
    The caller ensures that nobody else appends (see `Run.hold`). A new journal can be read by its
    owner only.
    """

    def __init__(self, path: Path, *, first: type[msgspec.Struct]) -> None:
        self.path = path
        self.repair: Repair | None = None
        self._encoder = msgspec.json.Encoder()
        try:
            self._file = open_private(path, os.O_RDWR | os.O_APPEND)
        except OSError as error:
            raise _failure(path, "cannot open", error) from error
        try:
            size = os.fstat(self._file).st_size
            if size:
                _require_first(path, first)
            self._end = _intact_length(self._file, size)
            if size > self._end:
                self.repair = self._move_aside(size)
        except OSError as error:
            self.close()
            raise _failure(path, "cannot repair the end of", error) from error
        except StoreError:
            self.close()
            raise

    def _move_aside(self, size: int) -> Repair:
        name = f"{self.path.name}.cut"
        names = (name, *(f"{name}.{number}" for number in range(2, _MOST_REPAIRS)))
        kept = next(p for p in map(self.path.with_name, names) if not os.path.lexists(p))
        with os.fdopen(open_private(kept, os.O_WRONLY | os.O_EXCL), "wb") as file:
            try:
                with self.path.open("rb") as journal:
                    journal.seek(self._end)
                    shutil.copyfileobj(journal, file)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                kept.unlink()
                raise
        os.ftruncate(self._file, self._end)
        return Repair(size=size - self._end, kept=kept)

    def append(self, record: Any) -> int:
        """Write `record` as one line with one write() call; returns the line's offset.

        When it returns, the operating system has the line: it survives kill -9 of this process
        (not a power cut). Raises StoreError, and leaves nothing of the line, if it cannot be
        written whole. Blocking, for the time of one write to the page cache.
        """
        line = self._encoder.encode(record) + b"\n"
        offset = self._end
        failure: OSError | str = "only part of the line was written"
        try:
            self._end += os.write(self._file, line)
        except OSError as error:
            failure = error
        if self._end != offset + len(line):
            self._end = offset
            with suppress(OSError):  # a device such as /dev/full has no length
                os.ftruncate(self._file, offset)
            raise _failure(self.path, "cannot append to", failure)
        return offset

    def sync(self) -> None:
        """Have the disk store all that was appended, so that it survives a power cut. Blocking.

        May run in another thread than `append`, but not while the journal is closed. Raises
        StoreError.
        """
        try:
            os.fsync(self._file)
        except OSError as error:
            raise _failure(self.path, "cannot sync", error) from error

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

    `record_type` is a Struct type or a union of them. Only one line is in memory. An incomplete end
    is skipped (a writer may be active). Raises StoreError, naming file and line, for a first line
    that is not a record, a broken line before the end, and a whole line that is not a
    `record_type`.
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
        _require_beginning(path, file.read(_BLOCK), record_type)
        file.seek(0)
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = decoder.decode(line)
            except msgspec.ValidationError as error:
                raise _broken(path, number, f"it is not a record known here: {error}") from error
            except RecursionError as error:
                raise _broken(path, number, "its JSON is nested too deeply") from error
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                if number > 1 and not any(_is_json(rest) for rest in file):
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
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StoreError(f"{path}: no record begins at byte {offset}", why=str(error)) from error


def _require_first(path: Path, first: type[msgspec.Struct]) -> None:
    """Raise StoreError unless the file's first line is a `first`, or the beginning of one."""
    with path.open("rb") as file:
        _require_beginning(path, file.read(_BLOCK), first)
        file.seek(0)
        line = file.readline()
    if not line.endswith(b"\n"):
        return
    try:
        msgspec.json.decode(line, type=first)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _broken(path, 1, str(error)) from error


def _require_beginning(path: Path, block: bytes, record_type: Any) -> None:
    """Raise StoreError if a file that begins with `block` cannot be a journal of that type."""
    for magic, what, fix in _FOREIGN:
        if block.startswith(magic):
            raise StoreError(
                f"{path} is not a journal", why=what, fix=f"{fix}; nothing was changed"
            )
    line, newline, _ = block.partition(b"\n")
    if newline and line.lstrip().startswith(b"{"):
        return  # a whole line, which is decoded next
    line = line[:_LONGEST_BEGINNING].replace(b" ", b"")
    beginnings = [_beginning(kind) for kind in get_args(record_type) or (record_type,)]
    if not any(line.startswith(b) or b.startswith(line) for b in beginnings):
        raise _broken(path, 1, "it does not begin as a record does")


def _beginning(kind: type[msgspec.Struct]) -> bytes:
    """The encoding of any `kind`, up to its tag or its first field's value."""
    config = kind.__struct_config__
    if config.tag_field is not None:
        return b'{"%s":"%s"' % (config.tag_field.encode(), str(config.tag).encode())
    return b'{"%s":' % kind.__struct_encode_fields__[0].encode()


def _intact_length(file: int, size: int) -> int:
    """Length of the file without a damaged end."""
    end = size
    while end:
        start = _last_line_start(file, end)
        line = os.pread(file, end - start, start)
        if line.endswith(b"\n") and _is_json(line):
            return end
        end = start
    return 0


def _last_line_start(file: int, end: int) -> int:
    """The offset of the line that ends at `end`."""
    position = end - 1  # skips the line's own newline, if it has one
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
    except RecursionError:
        return True  # a whole line; `read_journal` refuses it
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
    if isinstance(why, OSError) and why.errno not in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(
            f"{what} {path}",
            why=why.strerror or str(why),
            fix="check the file, the disk and the permissions: what was written is whole",
        )
    try:
        free = f"{shutil.disk_usage(path.parent).free / 1e6:,.1f} MB free there"
    except OSError:
        free = "free space unknown"
    return StoreError(
        f"{what} {path}",
        why=f"{why} ({free})",
        fix="make room or check the permissions, then resume: what was written is whole",
    )
