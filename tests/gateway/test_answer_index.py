from __future__ import annotations

import hashlib
import tracemalloc
from array import array

import pytest

from enginehouse.gateway import answer_index
from enginehouse.gateway.answer_index import AnswerIndex, prefix_of


def key(name: object) -> bytes:
    """A request's key."""
    return hashlib.sha256(str(name).encode()).digest()


def loaded(*names: object) -> AnswerIndex:
    """The index of a journal whose answers begin at 0, 10, 20 and so on."""
    prefixes = array("Q", [prefix_of(key(name)) for name in names])
    return AnswerIndex(prefixes, array("q", range(0, 10 * len(names), 10)))


def test_first_and_next():
    """Answers come in the order in which they were recorded, each once."""
    index = loaded("a", "b", "a", "c", "a")
    assert [index.first(key(name)) for name in "abcd"] == [0, 10, 30, None]
    assert [index.take(key("a")) for _ in range(4)] == [0, 20, 40, None]
    assert [index.take(key("c")) for _ in range(2)] == [30, None]
    assert index.take(key("d")) is None
    assert index.first(key("a")) == 0


def test_what_is_added_is_found_but_not_taken(monkeypatch):
    """Also after it has been sorted in, which forgets nothing that was taken."""
    monkeypatch.setattr(answer_index, "_MERGED_AT", 3)
    index = loaded("a", "a")
    assert index.take(key("a")) == 0
    for offset, name in enumerate(("x", "y", "a", "z", "x", "w"), start=100):
        index.add(key(name), offset)
    assert [index.first(key(name)) for name in "axyzw"] == [0, 100, 101, 103, 105]
    assert [index.take(key(name)) for name in "xyzw"] == [None] * 4
    assert [index.take(key("a")) for _ in range(2)] == [10, None]
    assert len(index) == 6


def test_empty():
    """A new journal."""
    index = loaded()
    assert index.first(key("a")) is None
    assert index.take(key("a")) is None
    index.add(key("a"), 5)
    assert index.first(key("a")) == 5


@pytest.mark.slow
def test_memory_of_a_million():
    """Twenty bytes an answer, and what is not sorted in yet."""
    tracemalloc.start()
    try:
        prefixes = array("Q", range(0, 3_000_000, 3))
        index = AnswerIndex(prefixes, array("q", range(1_000_000)))
        del prefixes
        size, _ = tracemalloc.get_traced_memory()
        assert size < 25_000_000
        assert index.first((30).to_bytes(8, "big")) == 10
    finally:
        tracemalloc.stop()
