"""Tensors of the wire as numpy arrays, bit for bit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.wire.schema import messages, require_known_fields

LARGEST = 1 << 26
"""Elements of one tensor when it is dense: 512 MB of int64."""

_FLOAT32, _INT64, _INT32, _BFLOAT16 = 1, 2, 3, 4  # the enum DType
_TYPES: dict[int, np.dtype[Any]] = {
    _FLOAT32: np.dtype(np.float32),
    _INT64: np.dtype(np.int64),
    _INT32: np.dtype(np.int32),
    _BFLOAT16: np.dtype(np.uint16),
}
_CODES = {np.dtype(np.float32): _FLOAT32, np.dtype(np.int64): _INT64, np.dtype(np.int32): _INT32}


def decode_tensor(tensor: Any, where: str, *, fill: int = 0) -> NDArray[Any]:
    """A Tensor message as a dense float32 or int64 array; it may be read-only.

    int32 becomes int64 and bfloat16 becomes float32, both exactly. `fill` is what a sparse tensor
    does not list. Raises TinkerError, beginning with `where`.
    """
    require_known_fields(tensor, where)
    stored = _TYPES.get(tensor.dtype)
    if stored is None:
        raise TinkerError(
            f"{where}: the element type {tensor.dtype} is unknown",
            fix="send float32, int64, int32 or bfloat16",
        )
    shape = tuple(tensor.shape)
    if tensor.HasField("sparse_csr"):
        require_known_fields(tensor.sparse_csr, where)
        values = _widen(_numbers(tensor.sparse_csr.values, stored, where), tensor.dtype)
        rows = _numbers(tensor.sparse_csr.crow_indices, np.dtype(np.int64), where)
        columns = _numbers(tensor.sparse_csr.col_indices, np.dtype(np.int64), where)
        return dense_from_csr(values, rows, columns, shape=shape, where=where, fill=fill)
    if not tensor.HasField("dense"):
        raise TinkerError(f"{where}: the tensor has no data")
    values = _widen(_numbers(tensor.dense, stored, where), tensor.dtype)
    return reshape(values, shape or values.shape, where)


def reshape(values: NDArray[Any], shape: tuple[int, ...], where: str) -> NDArray[Any]:
    """`values` in that shape. Raises TinkerError if their number does not fit."""
    if min(shape, default=0) < 0 or math.prod(shape) != values.size:
        raise TinkerError(
            f"{where}: {values.size} values do not fill the shape {_text(shape)}",
        )
    return values.reshape(shape)


def dense_from_csr(
    values: NDArray[Any],
    row_ends: NDArray[np.int64],
    columns: NDArray[np.int64],
    *,
    shape: tuple[int, ...],
    where: str,
    fill: int,
) -> NDArray[Any]:
    """A matrix from compressed sparse rows: `row_ends` begins with 0, and has a value per row more.

    Raises TinkerError for indices that do not describe a matrix of that shape, for a cell that is
    listed twice, and for a matrix with more than LARGEST cells.
    """
    if len(shape) != 2 or min(shape) < 0:
        raise TinkerError(
            f"{where}: a sparse tensor has two dimensions, not the shape {_text(shape)}"
        )
    if shape[0] * shape[1] > LARGEST:
        raise TinkerError(
            f"{where}: a tensor of shape {_text(shape)} has more than {LARGEST:,} cells",
            fix="send fewer columns",
        )
    counts = np.diff(row_ends)
    listed = len(values)
    if (
        len(row_ends) != shape[0] + 1
        or row_ends[0] != 0
        or row_ends[-1] != listed
        or len(columns) != listed
        or (counts < 0).any()
    ):
        raise TinkerError(
            f"{where}: the row indices of the sparse tensor do not fit its shape {_text(shape)} "
            f"and its {listed} values",
        )
    if listed and (columns.min() < 0 or columns.max() >= shape[1]):
        raise TinkerError(
            f"{where}: a column index of the sparse tensor is not in 0..{shape[1] - 1}"
        )
    cells = np.repeat(np.arange(shape[0], dtype=np.int64), counts) * shape[1] + columns
    if (np.diff(cells) <= 0).any():
        raise TinkerError(
            f"{where}: the sparse tensor lists a cell twice, or a row's columns out of order"
        )
    dense = np.full(shape, fill, dtype=values.dtype)
    dense.reshape(-1)[cells] = values
    return dense


def encode_tensor(array: NDArray[Any]) -> Any:
    """A dense Tensor message; the array's type is float32, int64 or int32."""
    return messages().Tensor(
        dense=array.tobytes(), dtype=dtype_code(array), shape=list(array.shape)
    )


def dtype_code(array: NDArray[Any]) -> int:
    """The number of an array's type in the enum DType. Raises TypeError for any other type."""
    code = _CODES.get(array.dtype)
    if code is None:
        raise TypeError(f"an array of {array.dtype} cannot be sent without loss")
    return code


def _numbers(data: bytes, dtype: np.dtype[Any], where: str) -> NDArray[Any]:
    if len(data) % dtype.itemsize:
        raise TinkerError(
            f"{where}: {len(data)} bytes are not a whole number of {dtype.itemsize}-byte elements"
        )
    return np.frombuffer(data, dtype=dtype)


def _widen(values: NDArray[Any], code: int) -> NDArray[Any]:
    if code == _BFLOAT16:  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    if code == _INT32:
        return values.astype(np.int64)
    return values


def _text(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
