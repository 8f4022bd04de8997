"""Requests of the Tinker API with random contents: any bits that the wire can carry."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

BITS = st.integers(0, 2**32 - 1)
"""Any float32: NaNs with payloads, denormals, infinities, both zeros."""
EXTREMES = st.sampled_from([0x80000000, 0x00000001, 0x7FC00001, 0xFFFFFFFF, 0x7F800000])
INT64 = st.integers(-(2**63), 2**63 - 1)
TOKENS = st.integers(0, 2**31 - 1)


def floats(length: int) -> st.SearchStrategy[NDArray[np.float32]]:
    """(length,) float32 of any bits."""
    bits = st.lists(BITS | EXTREMES, min_size=length, max_size=length)
    return bits.map(lambda values: np.array(values, dtype=np.uint32).view(np.float32))


def integers(length: int) -> st.SearchStrategy[NDArray[np.int64]]:
    """(length,) int64 of any value."""
    values = st.lists(INT64, min_size=length, max_size=length)
    return values.map(lambda numbers: np.array(numbers, dtype=np.int64))


def bits(array: NDArray[Any]) -> tuple[str, tuple[int, ...], bytes]:
    """What two arrays share only if no bit differs."""
    return (array.dtype.str, array.shape, array.tobytes())
