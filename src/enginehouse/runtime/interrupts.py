"""Signals that are held back while something must not be left half done, or passed on."""

from __future__ import annotations

import asyncio
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


class SignalRoute:
    """Where the signals of a command line go: they cancel its work, or are passed on for a while.

    What runs the work hands SIGINT and SIGTERM to `take` first.
    """

    _PASSED_ON = (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self) -> None:
        self._forward: Callable[[int], None] | None = None

    def take(self, number: int) -> bool:
        """Pass the signal on; False if it is to cancel the work."""
        if self._forward is None:
            return False
        self._forward(number)
        return True

    @contextmanager
    def passing_to(self, forward: Callable[[int], None]) -> Iterator[None]:
        """For the block, call `forward` with each signal that would end us. On the event loop."""
        loop = asyncio.get_running_loop()
        self._forward = forward
        for number in self._PASSED_ON:
            loop.add_signal_handler(number, forward, number)
        try:
            yield
        finally:
            for number in self._PASSED_ON:
                loop.remove_signal_handler(number)
            self._forward = None


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
