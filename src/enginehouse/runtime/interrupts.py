"""SIGINT and SIGTERM, held back while something must not be left half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """The signals that arrived in the block, by number; `stopping_with` can end it early."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._stop: Callable[[], None] = lambda: None

    def note(self, number: int, _: FrameType | None = None) -> None:
        """A signal handler: remember the signal."""
        self.received.append(number)
        self._stop()

    @contextmanager
    def stopping_with(self, stop: Callable[[], None]) -> Iterator[None]:
        """For the block, call `stop` at each interrupt, and at once if there was one before."""
        self._stop = stop
        if self.received:
            stop()
        try:
            yield
        finally:
            self._stop = lambda: None


@contextmanager
def interrupts_deferred() -> Iterator[Interrupts]:
    """SIGINT and SIGTERM take effect after the block (the first of them, if there were several).

    Signals are handled in the main thread only: in any other, nothing is deferred.
    """
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # None was not set by Python, and could not be set again
    kept = {number: handler for number, handler in kept.items() if handler is not None}
    for number in kept:
        signal.signal(number, interrupts.note)
    try:
        yield interrupts
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
        if interrupts.received:
            signal.raise_signal(interrupts.received[0])
