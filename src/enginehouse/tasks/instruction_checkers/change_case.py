"""IFEval's group "change_case"."""

from __future__ import annotations

from enginehouse.tasks.instruction_checkers.base import Checker, Count, Relation, holds
from enginehouse.tasks.instruction_checkers.language import is_in
from enginehouse.tasks.instruction_checkers.splitting import words


class CapitalWordFrequency(Checker, frozen=True, kw_only=True):
    """The number of words in capitals ("I" and "A" are such words) compares with a number."""

    capital_frequency: Count
    capital_relation: Relation

    def follows(self, response: str) -> bool:
        """Whether the number is as asked."""
        capitals = sum(1 for word in words(response) if word.isupper())
        return holds(capitals, self.capital_relation, self.capital_frequency)


class EnglishCapital(Checker, frozen=True, kw_only=True):
    """English without small letters."""

    def follows(self, response: str) -> bool:
        """Whether it is."""
        return response.isupper() and self.is_in(response, "en")

    is_in = staticmethod(is_in)


class EnglishLowercase(Checker, frozen=True, kw_only=True):
    """English without capital letters."""

    def follows(self, response: str) -> bool:
        """Whether it is."""
        return response.islower() and self.is_in(response, "en")

    is_in = staticmethod(is_in)
