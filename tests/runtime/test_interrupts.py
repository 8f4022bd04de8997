"""Asynchronous work in a blocking loop, and interrupts of it."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine

import pytest

from enginehouse.runtime.blocking import run_blocking
from enginehouse.runtime.interrupts import Interrupts, interrupts_deferred

NAME = "some-work"


@pytest.fixture(autouse=True)
def _ctrl_c(monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C is KeyboardInterrupt, also where the tests run in the background; no thread stays."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler
    assert [t for t in threading.enumerate() if t.name == NAME] == []


async def answer() -> int:
    """Some work."""
    await asyncio.sleep(0)
    return 42


async def broken() -> int:
    """Some other work."""
    raise ValueError("broken")


def interrupted(
    work: Callable[[], Coroutine[None, None, object]],
    done: list[str],
    *,
    first: Callable[[], None] = lambda: None,
) -> Interrupts:
    """Run work that is interrupted; KeyboardInterrupt comes after the block, and only then."""
    interrupts = Interrupts()

    def block() -> None:
        nonlocal interrupts
        with interrupts_deferred() as interrupts:
            first()
            with pytest.raises(asyncio.CancelledError):
                run_blocking(work, interrupts=interrupts, name=NAME)
            done.append("after it")

    with pytest.raises(KeyboardInterrupt):
        block()
    return interrupts


def test_a_result_and_an_error():
    """What the work comes to is returned, or raised."""
    assert run_blocking(answer, interrupts=Interrupts(), name=NAME) == 42
    with pytest.raises(ValueError, match="broken"):
        run_blocking(broken, interrupts=Interrupts(), name=NAME)


async def test_where_a_loop_runs():
    """As in a notebook."""
    assert run_blocking(answer, interrupts=Interrupts(), name=NAME) == 42


def test_an_interrupt_waits_for_the_work_to_be_put_away():
    """The work is cancelled and ends in order; only then does the interrupt take effect."""
    done: list[str] = []

    async def work() -> None:
        try:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            done.append("put away")

    interrupted(work, done)
    assert done == ["put away", "after it"]


def test_a_second_interrupt_reaches_what_puts_away():
    """Whoever stops a server can hurry."""
    done: list[str] = []

    async def work() -> None:
        main = threading.main_thread().ident
        try:
            signal.pthread_kill(main, signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            try:
                signal.pthread_kill(main, signal.SIGINT)
                await asyncio.Event().wait()
            finally:
                done.append("hurried")

    assert len(interrupted(work, done).received) == 2
    assert done == ["hurried", "after it"]


def test_an_interrupt_before_the_work():
    """Nothing is begun."""
    done: list[str] = []

    async def work() -> None:
        done.append("begun")

    interrupted(work, done, first=lambda: signal.raise_signal(signal.SIGINT))
    assert done == ["after it"]


def test_another_signals_handler_raises():
    """The work is cancelled, has ended, and what the handler raised is raised."""
    ended: list[str] = []

    class AlarmError(Exception):
        """Raised by a handler."""

    def ring(*_: object) -> None:
        raise AlarmError

    async def work() -> None:
        try:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
            await asyncio.Event().wait()
        finally:
            ended.append("yes")

    before = signal.signal(signal.SIGUSR1, ring)
    try:
        with pytest.raises(AlarmError):
            run_blocking(work, interrupts=Interrupts(), name=NAME)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert ended == ["yes"]


def test_in_another_thread_nothing_is_deferred():
    """Signals are the main thread's; the block is entered all the same."""
    seen: list[object] = []

    def loop() -> None:
        with interrupts_deferred() as interrupts:
            seen.append(run_blocking(answer, interrupts=interrupts, name=NAME))
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=loop)
    thread.start()
    thread.join()
    assert seen == [42, signal.default_int_handler]


def test_sigterm_keeps_its_handler():
    """A trainer's own handler is called once, after the block."""
    calls: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: calls.append("theirs"))
    try:
        with interrupts_deferred():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            assert calls == []
        assert calls == ["theirs"]
    finally:
        signal.signal(signal.SIGTERM, before)
