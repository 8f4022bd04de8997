"""IFEval's group "combination"."""

from __future__ import annotations

from enginehouse.tasks.instruction_checkers.base import Checker, Text


class TwoResponses(Checker, frozen=True, kw_only=True):
    """Two different responses, divided by `******`; a divider may also open or close them."""

    def follows(self, response: str) -> bool:
        """Whether there are two, they differ, and no blank one stands between dividers."""
        parts = [part.strip() for part in response.split("******")]
        if not all(parts[1:-1]):
            return False
        given = [part for part in parts if part]
        return len(given) == 2 and given[0] != given[1]


class RepeatPrompt(Checker, frozen=True, kw_only=True):
    """The response begins with the request, repeated word for word in any case."""

    prompt_to_repeat: Text

    def follows(self, response: str) -> bool:
        """Whether it does."""
        return response.strip().lower().startswith(self.prompt_to_repeat.strip().lower())
