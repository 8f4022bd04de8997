"""IFEval's group "detectable_content"."""

from __future__ import annotations

import re

from enginehouse.tasks.instruction_checkers.base import Checker, Count, Text, require_pattern


class NumberPlaceholders(Checker, frozen=True, kw_only=True):
    """At least so many placeholders such as [address]."""

    num_placeholders: Count

    def follows(self, response: str) -> bool:
        """Whether there are enough; empty brackets count."""
        count = sum(_bracketed(line) for line in response.split("\n"))
        return count >= self.num_placeholders


def _bracketed(line: str) -> int:
    r"""How often `\[.*?\]` matches in a line, in linear time."""
    count, end = 0, 0
    while (opening := line.find("[", end)) >= 0:
        closing = line.find("]", opening)
        if closing < 0:
            break
        count, end = count + 1, closing + 1
    return count


class Postscript(Checker, frozen=True, kw_only=True):
    """A postscript's marker occurs anywhere, in any case."""

    postscript_marker: Text

    def __post_init__(self) -> None:
        require_pattern(self.postscript_marker.lower())

    def follows(self, response: str) -> bool:
        """Whether it does. "P.S." and "P.P.S" may have spaces inside, others are patterns."""
        marker = self.postscript_marker.strip()
        spaced = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
        return bool(re.search(spaced.get(marker, marker.lower()), response.lower()))
