"""Logs that were copied from a terminal, which broke long lines at its width."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from enginehouse.diagnosis.prefixes import peel

_LOOKED_AT = 5_000  # lines from the beginning, by which the width is judged
_NARROWEST, _WIDEST = 60, 400
_FEWEST_FULL, _FEWEST_BROKEN = 3, 2  # lines as wide as the terminal, and those that go on below
_LONGEST = 4_000  # characters of a rejoined line


def rejoin_wrapped(lines: Iterable[str]) -> Iterator[str]:
    """The same lines, with those that a terminal broke put together again.

    A log counts as wrapped if no line is longer than several that all have the same length, and
    some of those are followed by the rest of a word.
    """
    rest = iter(lines)
    first = list(itertools.islice(rest, _LOOKED_AT))
    width = _width(first)
    everything = itertools.chain(first, rest)
    return everything if width is None else _rejoined(everything, width)


def _width(lines: Sequence[str]) -> int | None:
    width = max(map(len, lines), default=0)
    if not _NARROWEST <= width <= _WIDEST:
        return None
    full = sum(len(line) == width for line in lines)
    broken = sum(
        len(line) == width and following[:1].islower() and _continues(following)
        for line, following in itertools.pairwise(lines)
    )
    return width if full >= _FEWEST_FULL and broken >= _FEWEST_BROKEN else None


def _rejoined(lines: Iterable[str], width: int) -> Iterator[str]:
    whole: str | None = None
    last = ""
    for line in lines:
        # A space at the very edge is lost where a line is copied.
        if whole is not None and len(last) >= width - 1 and _continues(line):
            whole = (whole + " " * (width - len(last)) + line)[:_LONGEST]
        else:
            if whole is not None:
                yield whole
            whole = line
        last = line
    if whole is not None:
        yield whole


def _continues(line: str) -> bool:
    """Whether a line may be the rest of the one above: nothing shows that it begins there."""
    begins = not line or line[0].isspace() or line.startswith("Traceback ")
    return not begins and not peel(line).prefixed
