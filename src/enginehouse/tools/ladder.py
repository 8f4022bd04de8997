"""Which steps are tried, in which order, and which of them worked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import copy

from enginehouse.core.errors import ConfigurationError, UnknownNameError
from enginehouse.core.tool_steps import Step
from enginehouse.tools.results import CallOutcome

ALL_STEPS = tuple(Step)
_SKIPPED_AFTER = 3  # answers in a row without a single valid call
_Known = tuple[str | None, str | None, Step]  # model, template


class Ladder:
    """The steps that may be tried, in order. Pass the same ladder to every call.

    It remembers, for each model and chat template (`template` is its digest, None if unknown),
    which steps gave valid calls: one that failed three times and never worked is skipped from then
    on, as long as a later one works. Raises ConfigurationError for unknown steps.
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
                fix=f"name each once, out of {', '.join(known)}",
            )
        self.steps = tuple(Step(step) for step in steps)
        self.template = template
        self._worked: Counter[_Known] = Counter()
        self._failed: Counter[_Known] = Counter()

    def with_template(self, template: str | None) -> Ladder:
        """The same ladder, with the same memory, for models with this chat template."""
        other = copy(self)
        other.template = template
        return other

    def order(self, model: str | None) -> tuple[Step, ...]:
        """The steps to try with a model, at least one."""
        kept = tuple(
            step
            for at, step in enumerate(self.steps)
            if self._worked[model, self.template, step]
            or self._failed[model, self.template, step] < _SKIPPED_AFTER
            or not any(self._worked[model, self.template, s] for s in self.steps[at + 1 :])
        )
        return kept or self.steps

    def note(self, model: str | None, step: Step, outcome: CallOutcome | None) -> None:
        """Remember a step's outcome; None if the engine does not support it."""
        if outcome is CallOutcome.CALLED:
            self._worked[model, self.template, step] += 1
        elif outcome is not CallOutcome.ANSWERED:
            self._failed[model, self.template, step] += 1
