"""Logs with the newest line first, as the consoles of clouds and clusters show and export them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

_LOOKED_AT = 5_000  # lines from the beginning, by which the order is judged
_FEWEST = 3  # steps back in time, or tracebacks upside down, that make a log a reversed one
_STAMP = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?|\b\d\d-\d\d \d\d:\d\d:\d\d"
    r"|\b\d\d:\d\d:\d\d(?:[.,]\d{1,9})?"
)
_STAMPED_WITHIN = 160  # characters
_TRACEBACK = "Traceback (most recent call last)"
_FRAME = re.compile(r"File \"[^\"\n]{1,300}\", line \d")


def oldest_first(lines: Iterable[str]) -> Iterator[str]:
    """The same lines in the order in which they were written.

    Only a log that is found to be reversed is held in memory as a whole.
    """
    rest = iter(lines)
    first = list(itertools.islice(rest, _LOOKED_AT))
    if not _goes_back(first):
        return itertools.chain(first, rest)
    everything = [*first, *rest]
    if _upside_down(everything) or not any(_TRACEBACK in line for line in everything):
        return reversed(everything)
    return _entries_reversed(everything)


def _goes_back(lines: Sequence[str]) -> bool:
    """Whether time runs backwards, or, without times, tracebacks are upside down."""
    stamps = [stamp for line in lines if (stamp := _stamp(line))]
    pairs = [(one, two) for one, two in itertools.pairwise(stamps) if len(one) == len(two)]
    back = sum(two < one for one, two in pairs)
    on = sum(two > one for one, two in pairs)
    if back or on:
        return back >= _FEWEST and back > 9 * on
    return _upside_down(lines)


def _upside_down(lines: Sequence[str]) -> bool:
    """Whether tracebacks have their first line below their frames."""
    above = below = 0
    for number, line in enumerate(lines):
        if _TRACEBACK in line:
            above += any(map(_FRAME.search, lines[max(number - 4, 0) : number]))
            below += any(map(_FRAME.search, lines[number + 1 : number + 5]))
    return above > below


def _entries_reversed(lines: Sequence[str]) -> Iterator[str]:
    """Entries of several lines, each in its own order, the last entry first."""
    end = len(lines)
    for number in range(len(lines) - 1, -1, -1):
        if number == 0 or _stamp(lines[number]):
            yield from lines[number:end]
            end = number


def _stamp(line: str) -> str:
    match = _STAMP.search(line, 0, _STAMPED_WITHIN)
    return match[0] if match else ""
