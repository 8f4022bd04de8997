"""Whether the trainer runs, and how often it has ended without getting anything done."""

from __future__ import annotations

from collections.abc import Callable

from enginehouse.core.errors import EnginehouseError
from enginehouse.tinker.limits import Limits
from enginehouse.tinker.trainers.base import Trainer

_LONGEST_DELAY = 30.0  # seconds


class TrainerLife:
    """Starts a trainer that has ended: at once, and then after longer and longer delays.

    `why_not` is why it does not run, None while it does. `restarts` counts its starts but the
    first. It is given up when nothing has been computed for `Limits.patience`; `start` may still
    be called.
    """

    def __init__(self, trainer: Trainer, *, limits: Limits, clock: Callable[[], float]) -> None:
        self._trainer = trainer
        self._limits = limits
        self._clock = clock
        self._since: float | None = None
        self._setbacks = 0
        self._starts = 0
        self.why_not: str | None = "the trainer is being started"

    @property
    def restarts(self) -> int:
        """How often it was started again."""
        return max(0, self._starts - 1)

    @property
    def is_failing(self) -> bool:
        """Whether it has ended, or did not start."""
        return self.why_not is not None and self._setbacks > 0

    @property
    def delay(self) -> float:
        """How long to wait before the next start, in seconds."""
        if self._setbacks < 2:
            return 0.0
        return min(_LONGEST_DELAY, self._limits.restart_delay * 2.0 ** (self._setbacks - 2))

    @property
    def given_up(self) -> bool:
        """Whether those who wait for it should be told that it does not come back."""
        return (
            self.why_not is not None
            and self._since is not None
            and self._clock() - self._since >= self._limits.patience
        )

    async def start(self) -> None:
        """Start it. If it does not start, `why_not` says so."""
        try:
            await self._trainer.start()
        except EnginehouseError as error:
            self._set_back(f"the trainer does not start: {worded(error)}")
        else:
            self._starts += 1
            self.why_not = None

    def ended(self, error: EnginehouseError) -> None:
        """It has ended, and must be started again."""
        self._set_back(f"the trainer has ended and is being restarted: {worded(error)}")

    def progressed(self) -> None:
        """It has computed something."""
        self._setbacks = 0
        self._since = None

    def _set_back(self, why: str) -> None:
        self._setbacks += 1
        if self._since is None:
            self._since = self._clock()
        self.why_not = why


def worded(error: EnginehouseError) -> str:
    """A one-line description of a trainer error for users, without the log's path."""
    return f"{error.message} ({error.why})" if error.why else error.message
