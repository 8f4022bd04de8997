"""IFEval's group "detectable_format"."""

from __future__ import annotations

import json
import re

from enginehouse.tasks.instruction_checkers.base import Checker, Count, Text, require_pattern

_STAR = re.compile(r"\s*+(\*[^*].*)?+")
_DASH = re.compile(r"\s*+(-.*)?+")


def _count_bullets(bullet: re.Pattern[str], response: str) -> int:
    r"""How often `^\s*` and the bullet match, in linear time.

    White space spans lines, so that blank lines belong to the bullet behind them, and a bare `*`
    takes the next line for its text, as in the original.
    """
    count = start = 0
    while start <= len(response) and (match := bullet.match(response, start)):
        count += match[1] is not None
        end = match.end()
        if not (match[1] and response[end - 1] == "\n"):
            end = response.find("\n", end) + 1
        if end == 0:
            break
        start = end
    return count


class NumberBulletLists(Checker, frozen=True, kw_only=True):
    """Exactly so many lines that begin with `*` (not `**`) or with `-`."""

    num_bullets: Count

    def follows(self, response: str) -> bool:
        """Whether the number is right; a rule of dashes counts as a bullet, as in the original."""
        bullets = _count_bullets(_STAR, response) + _count_bullets(_DASH, response)
        return bullets == self.num_bullets


class ConstrainedResponse(Checker, frozen=True, kw_only=True):
    """One of three sentences occurs anywhere, letter by letter."""

    def follows(self, response: str) -> bool:
        """Whether one does."""
        return any(f"My answer is {word}." in response for word in ("yes", "no", "maybe"))


class NumberHighlightedSections(Checker, frozen=True, kw_only=True):
    """At least so many sections *highlighted* or **highlighted** within one line.

    As in the original, one that is marked ***so*** counts twice: both patterns find it.
    """

    num_highlights: Count

    def follows(self, response: str) -> bool:
        """Whether there are enough; blank ones don't count."""
        single = re.findall(r"\*([^\n*]*)\*", response)
        double = re.findall(r"\*\*([^\n*]*)\*\*", response)
        return sum(1 for part in single + double if part.strip()) >= self.num_highlights


class MultipleSections(Checker, frozen=True, kw_only=True):
    """At least so many headings such as "Section 1"; case matters, the numbers don't."""

    section_spliter: Text
    num_sections: Count

    def __post_init__(self) -> None:
        require_pattern(self.section_spliter)

    def follows(self, response: str) -> bool:
        """Whether there are enough."""
        heading = rf"\s?{self.section_spliter.strip()}\s?\d+\s?"
        return len(re.split(heading, response)) - 1 >= self.num_sections


class JsonFormat(Checker, frozen=True, kw_only=True):
    """The whole response is JSON, perhaps in a markdown fence."""

    def follows(self, response: str) -> bool:
        """Whether it parses; the original's quirk of removing several openings is kept."""
        text = response.strip()
        for opening in ("```json", "```Json", "```JSON", "```"):
            text = text.removeprefix(opening)
        try:
            json.loads(text.removesuffix("```").strip())
        except (ValueError, RecursionError):
            return False
        return True


class Title(Checker, frozen=True, kw_only=True):
    """A title in double angular brackets, <<such as this>>, within one line."""

    def follows(self, response: str) -> bool:
        """Whether there is one that is not blank."""
        titles = (_title(line) for line in response.split("\n"))
        return any(title.lstrip("<").rstrip(">").strip() for title in titles)


def _title(line: str) -> str:
    r"""What `<<[^\n]+>>` matches in a line, or "": from the first opening to the last closing."""
    start, end = line.find("<<"), line.rfind(">>")
    return line[start : end + 2] if 0 <= start < end - 2 else ""
