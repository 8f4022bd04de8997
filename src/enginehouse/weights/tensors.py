"""Tensors in safetensors files, read without torch. Blocking."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import safetensors
from numpy.typing import NDArray

# Unsigned integers of the type's size, and the exponent's bits, all of which NaN and inf have set.
FLOATS = {
    "BF16": ("<u2", 0x7F80),
    "F16": ("<u2", 0x7C00),
    "F32": ("<u4", 0x7F800000),
    "F64": ("<u8", 0x7FF0000000000000),
}
_CHUNK = 1 << 22  # values

DAMAGED = (OSError, ValueError, RecursionError, safetensors.SafetensorError)


class Tensor(msgspec.Struct, frozen=True):
    """A tensor as a file's header describes it; `dtype` as in safetensors (BF16, F32 …).

    Its data lies in the file from byte `begin` to byte `end`.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class Values(msgspec.Struct, frozen=True, kw_only=True):
    """Properties of a tensor's values; `not_finite` counts NaN and infinity."""

    not_finite: int
    is_zero: bool


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors in the file's header, by name. Raises one of DAMAGED if they do not fill it."""
    with safetensors.safe_open(file, framework="numpy"):
        pass  # it checks the header against the file
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
    header.pop("__metadata__", None)
    return {
        name: Tensor(
            entry["dtype"],
            tuple(entry["shape"]),
            *(8 + size + offset for offset in entry["data_offsets"]),
        )
        for name, entry in header.items()
    }


def read_values(file: Path, tensor: Tensor) -> Values:
    """Look at every value of a tensor whose type is one of FLOATS, a chunk at a time."""
    kind, exponent = FLOATS[tensor.dtype]
    count = (tensor.end - tensor.begin) // np.dtype(kind).itemsize
    not_finite, is_zero = 0, True
    if count:
        values = np.memmap(file, dtype=kind, mode="r", offset=tensor.begin, shape=(count,))
        for first in range(0, count, _CHUNK):
            chunk = values[first : first + _CHUNK]
            not_finite += int(np.count_nonzero((chunk & exponent) == exponent))
            is_zero = is_zero and not (chunk << 1).any()  # without the sign
    return Values(not_finite=not_finite, is_zero=is_zero)


def read_float32(file: Path, tensor: Tensor) -> NDArray[np.float32]:
    """A copy of a tensor whose type is one of FLOATS."""
    kind, _ = FLOATS[tensor.dtype]
    stored = np.memmap(file, dtype=kind, mode="r", offset=tensor.begin, shape=tensor.shape)
    if tensor.dtype == "BF16":
        return (stored.astype("<u4") << 16).view("<f4")
    return stored.view(f"<f{stored.itemsize}").astype("<f4")


def as_bytes(values: NDArray[np.float32], *, dtype: str) -> bytes:
    """Float32 values as one of FLOATS, rounded to the nearest number, ties to even."""
    if dtype != "BF16":
        return values.astype(f"<f{np.dtype(FLOATS[dtype][0]).itemsize}").tobytes()
    bits = np.ascontiguousarray(values, "<f4").view("<u4")
    rounded: NDArray[np.uint16] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return rounded.tobytes()
