"""IFEval's group "keywords". Keywords are regular expressions there, so they are here."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from enginehouse.tasks.instruction_checkers.base import (
    Checker,
    Count,
    Relation,
    Text,
    holds,
    require_pattern,
)

Keywords = Annotated[tuple[Text, ...], msgspec.Meta(min_length=1)]


class Existence(Checker, frozen=True, kw_only=True):
    """Every keyword occurs somewhere, in any case, inside longer words too."""

    keywords: Keywords

    def __post_init__(self) -> None:
        for keyword in self.keywords:
            require_pattern(keyword)

    def follows(self, response: str) -> bool:
        """Whether all of them are found."""
        return all(re.search(keyword, response, re.IGNORECASE) for keyword in self.keywords)


class Frequency(Checker, frozen=True, kw_only=True):
    """The keyword's occurrences, in any case and inside longer words, compare with a number."""

    keyword: Text
    frequency: Count
    relation: Relation

    def __post_init__(self) -> None:
        require_pattern(self.keyword)

    def follows(self, response: str) -> bool:
        """Whether the number of occurrences is as asked."""
        found = sum(1 for _ in re.finditer(self.keyword.strip(), response, re.IGNORECASE))
        return holds(found, self.relation, self.frequency)


class ForbiddenWords(Checker, frozen=True, kw_only=True):
    """None of the words occurs as a whole word, in any case."""

    forbidden_words: Keywords

    def __post_init__(self) -> None:
        for word in self.forbidden_words:
            require_pattern(word)

    def follows(self, response: str) -> bool:
        """Whether none is found."""
        return not any(
            re.search(rf"\b{word}\b", response, re.IGNORECASE) for word in self.forbidden_words
        )


class LetterFrequency(Checker, frozen=True, kw_only=True):
    """A character's occurrences, in any case, compare with a number.

    Two of IFEval's prompts ask for "#" and "!". The original replaces what is no ASCII letter by
    a random letter; here the character that the prompt names is counted.
    """

    letter: Annotated[str, msgspec.Meta(min_length=1, max_length=1)]
    let_frequency: Count
    let_relation: Relation

    def follows(self, response: str) -> bool:
        """Whether the number of occurrences is as asked."""
        found = response.lower().count(self.letter.lower())
        return holds(found, self.let_relation, self.let_frequency)
