"""A GGUF file's metadata, read from its header without loading a weight.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from enginehouse.core.errors import ModelError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_LONGEST = 1 << 26  # bytes of a text; more is a broken file

Scalar = int | float | bool | str


def read_metadata(file: Path) -> Mapping[str, Scalar]:
    """The file's keys and values, without arrays. Blocking: 0.1 s for a large vocabulary.

    Raises ModelError for a file that is damaged or not a GGUF file.
    """
    with file.open("rb") as opened:
        try:
            return _read(opened)
        except (struct.error, ValueError, OverflowError, OSError, RecursionError) as error:
            raise ModelError(
                f"{file} is damaged or not a GGUF file",
                why=str(error),
                fix="download or copy it again; a Git LFS pointer needs `git lfs pull`",
            ) from error


def _read(opened: BinaryIO) -> dict[str, Scalar]:
    magic = opened.read(len(_MAGIC))
    if magic != _MAGIC:
        raise ValueError(f"it begins with {magic!r}, not {_MAGIC!r}")
    version, _, count = struct.unpack("<IQQ", opened.read(20))
    if version not in _VERSIONS:
        raise ValueError(f"its version is {version}, and {_VERSIONS} are known")
    metadata: dict[str, Scalar] = {}
    for _ in range(count):
        key = _text(opened)
        (kind,) = struct.unpack("<I", opened.read(4))
        value = _value(opened, kind)
        if value is not None:
            metadata[key] = value
    return metadata


def _value(opened: BinaryIO, kind: int) -> Scalar | None:
    if kind == _STRING:
        return _text(opened)
    if kind == _ARRAY:
        inner, length = struct.unpack("<IQ", opened.read(12))
        _skip(opened, inner, length)
        return None
    if kind not in _SCALARS:
        raise ValueError(f"it has a value of the unknown type {kind}")
    form = "<" + _SCALARS[kind]
    (value,) = struct.unpack(form, opened.read(struct.calcsize(form)))
    assert isinstance(value, int | float | bool)
    return value


def _skip(opened: BinaryIO, kind: int, length: int) -> None:
    if kind in _SCALARS:
        opened.seek(length * struct.calcsize("<" + _SCALARS[kind]), 1)
        return
    for _ in range(length):
        if kind == _STRING:
            opened.seek(_size(opened), 1)
        else:
            _value(opened, kind)


def _size(opened: BinaryIO) -> int:
    (size,) = struct.unpack("<Q", opened.read(8))
    if size > _LONGEST:
        raise ValueError(f"it has a text of {size} bytes")
    assert isinstance(size, int)
    return size


def _text(opened: BinaryIO) -> str:
    return opened.read(_size(opened)).decode("utf-8", "replace")
