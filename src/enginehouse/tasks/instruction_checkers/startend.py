"""IFEval's group "startend"."""

from __future__ import annotations

from enginehouse.tasks.instruction_checkers.base import Checker, Text


class EndChecker(Checker, frozen=True, kw_only=True):
    """The response ends with a phrase, in any case; closing quotation marks are overlooked."""

    end_phrase: Text

    def follows(self, response: str) -> bool:
        """Whether it does."""
        return response.strip().strip('"').lower().endswith(self.end_phrase.strip().lower())


class Quotation(Checker, frozen=True, kw_only=True):
    """The whole response stands in straight double quotation marks."""

    def follows(self, response: str) -> bool:
        """Whether its first and last characters are two such marks."""
        text = response.strip()
        return len(text) > 1 and text[0] == text[-1] == '"'
