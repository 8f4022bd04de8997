"""Which steps are tried, in which order, and what was learnt about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import copy

from enginehouse.core.errors import ConfigurationError, UnknownNameError
from enginehouse.core.tool_steps import Step
from enginehouse.tools.results import CallOutcome

ALL_STEPS = tuple(Step)
_GIVEN_UP_AFTER = 3  # answers in a row without a single valid call
_Known = tuple[str | None, str | None, Step]  # model, template


class Ladder:
    """The steps that may be tried, from the first on; give the same one to every call.

    It remembers, for each model and chat template (`template` is its digest, None where that is
    not known), which steps gave valid calls: one that failed three times and never worked is left
    out from then on, as long as a later one does work. Raises ConfigurationError for steps that do
    not exist.
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
        self._worked: Counter[_Known] = Counter()
        self._failed: Counter[_Known] = Counter()

    def with_template(self, template: str | None) -> Ladder:
        """The same ladder, and one memory, for models that are served with this chat template."""
        other = copy(self)
        other.template = template
        return other

    def order(self, model: str | None) -> tuple[Step, ...]:
        """The steps to try with a model, at least one."""
        kept = tuple(
            step
            for at, step in enumerate(self.steps)
            if self._worked[model, self.template, step]
            or self._failed[model, self.template, step] < _GIVEN_UP_AFTER
            or not any(self._worked[model, self.template, s] for s in self.steps[at + 1 :])
        )
        return kept or self.steps

    def note(self, model: str | None, step: Step, outcome: CallOutcome | None) -> None:
        """Remember what a step gave; None is that the engine does not do it."""
        if outcome is CallOutcome.CALLED:
            self._worked[model, self.template, step] += 1
        elif outcome is not CallOutcome.ANSWERED:
            self._failed[model, self.template, step] += 1
