"""Where in a journal the answers to each request are, in about 20 bytes for each answer."""

from __future__ import annotations

from array import array

import numpy as np
from numpy.typing import NDArray

_MERGED_AT = 1 << 16  # additions, which take more room until they are sorted in


class AnswerIndex:
    """Maps a key to the offsets of its answers, in the order in which they were recorded.

    Only the first 64 bits of a key are kept: the reader of an answer compares the whole key, and
    takes two keys that begin alike for a request that is not recorded.
    """

    def __init__(self, prefixes: array[int], offsets: array[int]) -> None:
        self._prefixes: NDArray[np.uint64] = np.frombuffer(prefixes, np.uint64)
        self._offsets: NDArray[np.int64] = np.frombuffer(offsets, np.int64)
        self._taken: NDArray[np.uint32] = np.zeros(len(prefixes), np.uint32)
        self._sort()
        self._loaded_until = int(self._offsets.max()) if len(offsets) else -1
        self._added: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._prefixes) + len(self._added)

    def first(self, key: bytes) -> int | None:
        """The offset of the first answer."""
        prefix = prefix_of(key)
        place = self._place(prefix)
        return self._added.get(prefix) if place is None else int(self._offsets[place])

    def take(self, key: bytes) -> int | None:
        """The next answer that was there from the beginning, each of them once."""
        prefix = prefix_of(key)
        place = self._place(prefix)
        if place is None:
            return None
        following = place + int(self._taken[place])
        if following == len(self._prefixes) or int(self._prefixes[following]) != prefix:
            return None
        offset = int(self._offsets[following])
        if offset > self._loaded_until:
            return None
        self._taken[place] += 1
        return offset

    def add(self, key: bytes, offset: int) -> None:
        """The answer at `offset` was recorded just now; `take` never returns it."""
        prefix = prefix_of(key)
        if self._place(prefix) is None:
            self._added.setdefault(prefix, offset)
        if len(self._added) >= _MERGED_AT:
            self._merge()

    def _place(self, prefix: int) -> int | None:
        """Where the key's answers begin in the sorted arrays."""
        place = int(np.searchsorted(self._prefixes, np.uint64(prefix)))
        if place < len(self._prefixes) and int(self._prefixes[place]) == prefix:
            return place
        return None

    def _merge(self) -> None:
        size = len(self._added)
        prefixes = np.fromiter(self._added.keys(), np.uint64, size)
        offsets = np.fromiter(self._added.values(), np.int64, size)
        self._prefixes = np.concatenate([self._prefixes, prefixes])
        self._offsets = np.concatenate([self._offsets, offsets])
        self._taken = np.concatenate([self._taken, np.zeros(size, np.uint32)])
        self._sort()
        self._added = {}

    def _sort(self) -> None:
        order = np.argsort(self._prefixes, kind="stable")
        self._prefixes, self._offsets = self._prefixes[order], self._offsets[order]
        self._taken = self._taken[order]


def prefix_of(key: bytes) -> int:
    """The part of a key that is kept."""
    return int.from_bytes(key[:8], "big")
