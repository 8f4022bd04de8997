"""Asynchronous work for a training loop, which blocks; and interrupts, which must wait for it."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

Result = TypeVar("Result")

# Seconds. A signal that comes just before a thread begins to wait does not end its waiting, and
# its handler only runs after that.
_LOOK_EVERY = 0.1


class Interrupts:
    """SIGINT and SIGTERM that came in a block which must not be left half done.

    `received` has their numbers. Whoever can stop early is told by `stopping_with`.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._stop: Callable[[], None] = lambda: None

    def note(self, number: int, _: FrameType | None = None) -> None:
        """Take one: a signal handler."""
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

    In any other thread than the main one, where no signal is handled, none will be noted.
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


def run_blocking(
    work: Callable[[], Coroutine[Any, Any, Result]], *, interrupts: Interrupts
) -> Result:
    """What `work()` comes to, on a thread and an event loop of its own.

    May be called where an event loop runs (which it blocks). An interrupt cancels the work, and a
    second one what it does to put everything away; it has ended when this raises CancelledError.
    """
    worker = _Worker(work)
    worker.start()  # should another signal's handler raise before `begin`, nothing is begun
    error: BaseException | None = None
    with interrupts.stopping_with(worker.cancel):
        while True:
            try:
                worker.begin.set()
                while not worker.ended.wait(_LOOK_EVERY):
                    pass
                break
            except BaseException as raised:  # noqa: BLE001 - another signal's handler
                error = raised
                worker.cancel()
    worker.join()
    if error is not None:
        raise error
    result: Result = worker.outcome.result()
    return result


class _Worker(threading.Thread):
    def __init__(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        super().__init__(name="enginehouse-evaluation", daemon=True)
        self.begin = threading.Event()
        self.ended = threading.Event()
        self.outcome: Future[Any] = Future()
        self._work = work
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = False

    def run(self) -> None:
        self.begin.wait()
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                self.outcome.set_result(runner.run(self._supervised()))
        except BaseException as error:  # noqa: BLE001 - it is raised where somebody waits
            self.outcome.set_exception(error)
        finally:
            self.ended.set()

    def cancel(self) -> None:
        """Cancel the work, or, again, what it does because of that; from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._cancel)
        except RuntimeError:  # the loop is closed: it has just ended
            return

    def _cancel(self) -> None:
        self._cancelled = True
        if self._task is not None:
            self._task.cancel()

    async def _supervised(self) -> Any:
        self._task = asyncio.ensure_future(self._work())
        if self._cancelled:  # before it began
            self._task.cancel()
        return await self._task
