"""Logs that were copied from a terminal, which broke long lines at its width."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

from enginehouse.diagnosis.prefixes import peel

_LOOKED_AT = 5_000  # lines from the beginning, by which the width is judged
_NARROWEST, _WIDEST = 60, 400
_FEWEST = 3  # lines as wide as the terminal
_BEGINS = re.compile(r"  |\t|Traceback |[-=|+#*]|[\w.\-]{2,60}: ")
_LONGEST = 4_000  # characters of a rejoined line


def rejoin_wrapped(lines: Iterable[str]) -> Iterator[str]:
    """The same lines, with those that a terminal broke put together again.

    A log counts as wrapped if no line is longer than several that all have the same length, and
    most of those are followed by a line that does not look like a beginning.
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
    below = [after for line, after in itertools.pairwise(lines) if len(line) == width]
    broken = [line for line in below if _continues(line) and not line[0].isupper()]
    wrapped = len(below) >= _FEWEST and len(broken) > len(below) / 2
    return width if wrapped else None


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
    if not line or _BEGINS.match(line):
        return False
    peeled = peel(line)
    return not peeled.prefixed and len(peeled.text) == len(line)
