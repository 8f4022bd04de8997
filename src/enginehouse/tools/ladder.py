"""Which steps are tried, in which order, and what was learnt about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from enginehouse.core.errors import ConfigurationError, UnknownNameError
from enginehouse.tools.results import CallOutcome, Step

ALL_STEPS = tuple(Step)
_GIVEN_UP_AFTER = 3  # answers in a row without a single valid call


class Ladder:
    """The steps that may be tried, from the first on; give the same one to every call.

    It remembers, for each model (and the chat template, by its digest, if that is known), which
    steps gave valid calls: one that failed three times and never worked is left out from then on,
    as long as a later one does work. Raises ConfigurationError for steps that do not exist.
    """

    def __init__(
        self, steps: Sequence[Step | str] = ALL_STEPS, *, template: str | None = None
    ) -> None:
        known = [step.value for step in Step]
        for step in steps:
            if step not in known:
                raise UnknownNameError("step of tool calling", str(step), known)
        if not steps or len(set(steps)) != len(steps):
            raise ConfigurationError(
                f"the steps of tool calling are {', '.join(steps) or 'none'}",
                fix=f"name each once, of: {', '.join(known)}",
            )
        self.steps = tuple(Step(step) for step in steps)
        self.template = template
        self._worked: Counter[tuple[str | None, Step]] = Counter()
        self._failed: Counter[tuple[str | None, Step]] = Counter()

    def order(self, model: str | None) -> tuple[Step, ...]:
        """The steps to try with a model, at least one."""
        kept = tuple(
            step
            for at, step in enumerate(self.steps)
            if not self._is_given_up(model, step)
            or not any(self._worked[model, later] for later in self.steps[at + 1 :])
        )
        return kept or self.steps

    def note(self, model: str | None, step: Step, outcome: CallOutcome | None) -> None:
        """Remember what a step gave; None is that the engine does not do it."""
        if outcome is CallOutcome.CALLED:
            self._worked[model, step] += 1
        elif outcome is not CallOutcome.ANSWERED:
            self._failed[model, step] += 1

    def _is_given_up(self, model: str | None, step: Step) -> bool:
        return not self._worked[model, step] and self._failed[model, step] >= _GIVEN_UP_AFTER
