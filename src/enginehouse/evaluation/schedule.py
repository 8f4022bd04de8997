"""Which sample is asked next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Self

from enginehouse.evaluation.asking import Unit


class Schedule:
    """The samples of all tasks, task by task, but a task is passed over while its bound is reached.

    Ends, for now, when all that is left is passed over: the caller of `finish` then takes the next
    one, so that workers may leave when it ends.
    """

    def __init__(self, units: Mapping[str, Iterator[Unit]], *, bounds: Mapping[str, int]) -> None:
        self._units = dict(units)
        self._bounds = bounds
        self._in_flight: Counter[str] = Counter()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Unit:
        for name in tuple(self._units):
            bound = self._bounds.get(name)
            if bound is not None and self._in_flight[name] >= bound:
                continue
            if (unit := next(self._units[name], None)) is not None:
                self._in_flight[name] += 1
                return unit
            del self._units[name]
        raise StopIteration

    def finish(self, unit: Unit) -> None:
        """This sample has been answered, or has failed."""
        self._in_flight[unit.plan.name] -= 1
