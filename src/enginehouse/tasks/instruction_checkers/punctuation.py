"""IFEval's group "punctuation"."""

from __future__ import annotations

from enginehouse.tasks.instruction_checkers.base import Checker


class NoComma(Checker, frozen=True, kw_only=True):
    """No comma anywhere; other scripts' commas are none."""

    def follows(self, response: str) -> bool:
        """Whether there is none."""
        return "," not in response
