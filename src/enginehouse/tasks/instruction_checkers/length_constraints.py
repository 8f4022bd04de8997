"""IFEval's group "length_constraints"."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from enginehouse.tasks.instruction_checkers.base import Checker, Count, Relation, Text, holds
from enginehouse.tasks.instruction_checkers.splitting import count_words, sentences


class NumberSentences(Checker, frozen=True, kw_only=True):
    """The number of sentences compares with a number."""

    num_sentences: Count
    relation: Relation

    def follows(self, response: str) -> bool:
        """Whether the number is as asked."""
        return holds(len(sentences(response)), self.relation, self.num_sentences)


class NumberParagraphs(Checker, frozen=True, kw_only=True):
    """Exactly so many paragraphs, divided by `***`; a divider may open or close the response."""

    num_paragraphs: Count

    def follows(self, response: str) -> bool:
        """Whether the number is right and none between two dividers is blank."""
        first, *rest = re.split(r"\s?\*\*\*\s?", response)
        inner, last = rest[:-1], rest[-1:]
        if not all(part.strip() for part in inner):
            return False
        ends = sum(1 for part in (first, *last) if part.strip())
        return len(inner) + ends == self.num_paragraphs


class NumberWords(Checker, frozen=True, kw_only=True):
    """The number of words compares with a number."""

    num_words: Count
    relation: Relation

    def follows(self, response: str) -> bool:
        """Whether the number is as asked."""
        return holds(count_words(response), self.relation, self.num_words)


class NthParagraphFirstWord(Checker, frozen=True, kw_only=True):
    """Exactly so many paragraphs, divided by blank lines, and one that starts with a word.

    As in the original, blank paragraphs are left out of the number but not out of the position.
    """

    num_paragraphs: Count
    nth_paragraph: Annotated[int, msgspec.Meta(ge=1)]
    first_word: Text

    def __post_init__(self) -> None:
        if self.nth_paragraph > self.num_paragraphs:
            raise ValueError(
                f"nth_paragraph {self.nth_paragraph} exceeds num_paragraphs {self.num_paragraphs}"
            )

    def follows(self, response: str) -> bool:
        """Whether the number is right, and the word, which a mark from `.,?!'"` ends."""
        paragraphs = response.split("\n\n")
        if sum(1 for paragraph in paragraphs if paragraph.strip()) != self.num_paragraphs:
            return False
        beginning = paragraphs[self.nth_paragraph - 1].split(maxsplit=1)[:1]
        if not beginning:
            return False
        word = beginning[0].lstrip("'").lstrip('"')
        return re.split("[.,?!'\"]", word, maxsplit=1)[0].lower() == self.first_word.lower()
