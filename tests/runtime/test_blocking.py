"""The blocking skin: one thread, several callers, every way of ending."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from enginehouse.runtime.blocking import Portal


class Block:
    """A block that notes how it is entered and left."""

    def __init__(self, *, entering: str = "", leaving: str = "") -> None:
        self.notes: list[str] = []
        self.entering = entering
        self.leaving = leaving
        self.waiting = threading.Event()

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[int]:
        """The block itself."""
        if self.entering:
            raise ValueError(self.entering)
        self.notes.append("entered")
        try:
            yield 20
        finally:
            await asyncio.to_thread(self.notes.append, "left")
            if self.leaving:
                raise ValueError(self.leaving)

    async def forever(self, _: int) -> None:
        """Work that only a cancellation ends."""
        self.waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.notes.append("cancelled")


async def plus_one(value: int) -> int:
    """Some work."""
    await asyncio.sleep(0)
    return value + 1


def test_it_answers_threads_and_running_loops_alike() -> None:
    """Scripts, notebooks and services ask in the same way; work of several goes on at once."""
    block = Block()
    portal = Portal(block, name="a block")
    assert portal.call(plus_one) == 21

    async def inside_a_loop() -> int:
        return portal.call(plus_one)

    assert asyncio.run(inside_a_loop()) == 21

    arrived: list[int] = []
    met = asyncio.Event()

    async def meet(value: int) -> int:
        arrived.append(value)
        if len(arrived) == 8:
            met.set()
        await met.wait()
        return value

    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(portal.call(meet))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert answers == [20] * 8
    portal.close()
    assert block.notes == ["entered", "left"]


def test_errors_are_raised_where_the_call_was() -> None:
    """Of the work, and of entering and leaving the block."""
    portal = Portal(Block(), name="a block")

    async def fail(_: int) -> None:
        raise KeyError("no")

    with pytest.raises(KeyError):
        portal.call(fail)
    assert portal.call(plus_one) == 21
    portal.close()
    with pytest.raises(ValueError, match="not today"):
        Portal(Block(entering="not today"), name="a block")
    leaving = Portal(Block(leaving="still there"), name="a block")
    with pytest.raises(ValueError, match="still there"):
        leaving.close()


def test_closing_ends_what_is_under_way() -> None:
    """Whoever waits is told; the work is cancelled before the block is left."""
    block = Block()
    portal = Portal(block, name="the block")
    told: list[str] = []

    def ask() -> None:
        with pytest.raises(RuntimeError) as refused:
            portal.call(block.forever)
        told.append(str(refused.value))

    thread = threading.Thread(target=ask)
    thread.start()
    assert block.waiting.wait(10)
    portal.close()
    thread.join(10)
    assert told == ["the block has been closed"]
    assert block.notes == ["entered", "cancelled", "left"]
    portal.close()
    with pytest.raises(RuntimeError, match="closed"):
        portal.call(plus_one)


@pytest.mark.slow
def test_letting_go_is_closing() -> None:
    """No thread is left of one that nobody refers to."""
    block = Block()
    portal = Portal(block, name="a block")
    del portal
    gc.collect()
    assert block.notes == ["entered", "left"]


def test_many_threads_may_ask_while_another_closes() -> None:
    """Every call is answered or refused: none waits for ever."""
    for _ in range(20):
        portal = Portal(Block(), name="a block")
        seen: list[object] = []

        def ask(portal: Portal[int] = portal, seen: list[object] = seen) -> None:
            try:
                while True:
                    seen.append(portal.call(plus_one))
            except RuntimeError as error:
                seen.append(error)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        portal.close()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()


SCRIPT = """
import asyncio, os, signal, sys, threading
from contextlib import asynccontextmanager
from enginehouse.runtime.blocking import Portal

@asynccontextmanager
async def block():
    try:
        yield 1
    finally:
        await asyncio.to_thread(os.write, 1, b"left ")

async def interrupted(_):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()
    finally:
        os.write(1, b"cancelled ")

portal = Portal(block, name="block")
"""


@pytest.mark.parametrize(
    ("ending", "out", "code"),
    [
        ("", "left ", 0),
        ("raise SystemExit(3)", "left ", 3),
        ("portal.call(interrupted)", "cancelled left ", -2),
        ("threading.Thread(target=portal.close).start()", "left ", 0),
    ],
)
def test_an_interpreter_that_ends_closes_it(ending: str, out: str, code: int) -> None:
    """However a script ends, the block is left, with threads for what it wants done there."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", SCRIPT + ending],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode) == (out, code)
    assert "KeyboardInterrupt" in done.stderr if code == -2 else done.stderr == ""
