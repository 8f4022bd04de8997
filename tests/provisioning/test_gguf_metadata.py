from __future__ import annotations

import struct
from pathlib import Path

import pytest

from enginehouse.core.errors import ModelError
from enginehouse.provisioning.gguf_metadata import read_metadata


def text(value: str) -> bytes:
    """A GGUF string."""
    return struct.pack("<Q", len(value.encode())) + value.encode()


def header(*pairs: bytes, version: int = 3) -> bytes:
    """A GGUF file of these keys and no tensor."""
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(pairs)) + b"".join(pairs)


@pytest.mark.parametrize(
    "array",
    [
        struct.pack("<IQ", 9, 1) * 100_000,
        struct.pack("<IQ", 4, 2**63),
        struct.pack("<IQ", 8, 2**64 - 1),
    ],
    ids=["nested", "beyond the largest file", "endless"],
)
def test_arrays_that_no_file_can_hold_are_refused(tmp_path: Path, array: bytes):
    """By the error for a broken file, and at once."""
    file = tmp_path / "model.gguf"
    file.write_bytes(header(text("bomb") + struct.pack("<I", 9) + array))
    with pytest.raises(ModelError):
        read_metadata(file)


def test_every_kind_of_value_is_read(tmp_path: Path):
    """Arrays, of texts and of arrays too, are stepped over, whatever follows them."""
    nested = struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 4, 2) + struct.pack("<II", 1, 2)
    file = tmp_path / "model.gguf"
    file.write_bytes(
        header(
            text("name") + struct.pack("<I", 8) + text("é"),
            text("words") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bc"),
            text("numbers") + struct.pack("<IIQ", 9, 4, 3) + struct.pack("<III", 1, 2, 3),
            text("nested") + nested,
            text("length") + struct.pack("<II", 4, 8192),
            text("small") + struct.pack("<Ib", 1, -3),
            text("share") + struct.pack("<If", 6, 0.5),
            text("flag") + struct.pack("<I?", 7, True),
            text("large") + struct.pack("<IQ", 10, 2**40),
        )
    )
    assert read_metadata(file) == {
        "name": "é",
        "length": 8192,
        "small": -3,
        "share": 0.5,
        "flag": True,
        "large": 2**40,
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1", "begins with"),
        (b"", "begins with"),
        (header(version=1), "version is 1"),
        (header(text("key") + struct.pack("<I", 8) + text("value"))[:-8], "not a GGUF file"),
        (header(text("key") + struct.pack("<I", 77)), "unknown type 77"),
        (header(struct.pack("<Q", 2**60)), "bytes"),
    ],
)
def test_what_is_no_gguf_file_says_so(tmp_path: Path, content: bytes, words: str):
    """Another file, an old version, one that is cut off, one with nonsense in it."""
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with pytest.raises(ModelError, match="GGUF") as error:
        read_metadata(file)
    assert words in str(error.value)
