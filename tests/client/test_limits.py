"""How many requests are under way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from enginehouse.client.limits import Adaptive, AdaptiveController, Limit
from enginehouse.core.errors import ConfigurationError
from enginehouse.core.sampler import Load


async def settle() -> None:
    """Let every ready task run."""
    for _ in range(10):
        await asyncio.sleep(0)


class Holders:
    """Tasks that hold a limit until they are told to let go."""

    def __init__(self, limit: Limit, count: int) -> None:
        self.order: list[int] = []
        self.gates = [asyncio.Event() for _ in range(count)]
        self.tasks = [asyncio.create_task(self._hold(limit, i)) for i in range(count)]

    async def _hold(self, limit: Limit, number: int) -> None:
        async with limit:
            self.order.append(number)
            await self.gates[number].wait()

    async def finish(self) -> None:
        """Let all go and wait for them."""
        for gate in self.gates:
            gate.set()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def test_no_more_than_the_limit_hold_it_first_come_first_served():
    """The rest wait in order."""
    limit = Limit(2)
    holders = Holders(limit, 4)
    await settle()
    assert (limit.held, limit.waiting, holders.order) == (2, 2, [0, 1])
    holders.gates[1].set()
    await settle()
    assert (limit.held, limit.waiting, holders.order) == (2, 1, [0, 1, 2])
    await holders.finish()
    assert (limit.held, limit.waiting, holders.order) == (0, 0, [0, 1, 2, 3])


async def test_resizing_lets_more_in_at_once_and_fewer_as_they_leave():
    """A smaller limit never takes back what is held."""
    limit = Limit(1)
    holders = Holders(limit, 5)
    await settle()
    limit.resize(4)
    await settle()
    assert limit.held == 4
    limit.resize(2)
    holders.gates[0].set()
    holders.gates[1].set()
    await settle()
    assert (limit.held, limit.waiting) == (2, 1)
    await holders.finish()
    assert limit.held == 0


async def test_a_cancelled_waiter_leaves_no_hole():
    """Neither one that waits, nor one that was just let in."""
    limit = Limit(1)
    holders = Holders(limit, 4)
    await settle()
    holders.tasks[1].cancel()
    await settle()
    assert limit.waiting == 2
    holders.gates[0].set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    holders.tasks[2].cancel()
    await settle()
    assert (limit.held, holders.order[-1]) == (1, 3)
    await holders.finish()
    assert (limit.held, limit.waiting) == (0, 0)


def controller(start: int, **bounds: int) -> tuple[Limit, AdaptiveController]:
    """A limit and its controller."""
    limit = Limit(start)
    return limit, AdaptiveController(limit, bounds=Adaptive(start=start, **bounds))


def load(waiting: int) -> Load:
    """A queue of that length."""
    return Load(running=1, waiting=waiting)


def test_it_doubles_until_something_waits_then_grows_by_small_steps():
    """Slow start, then additive increase and multiplicative decrease."""
    limit, steering = controller(16, maximum=1000)
    seen = []
    for waiting in (0, 0, 0, 40, 20, 0, 0, 0):
        limit.held = limit.limit
        steering.observe(load(waiting))
        seen.append(limit.limit)
    assert seen == [32, 64, 128, 96, 96, 102, 108, 114]


def test_a_stable_queue_is_left_alone_and_a_growing_one_shrinks_the_limit():
    """Some waiting keeps an engine busy; more and more does not."""
    limit, steering = controller(100, maximum=1000)
    seen = []
    for waiting in (5, 5, 5, 6, 50, 50, 3):
        limit.held = limit.limit
        steering.observe(load(waiting))
        seen.append(limit.limit)
    assert seen == [75, 75, 75, 56, 42, 42, 42]


def test_bounds_are_kept():
    """Never below the minimum, never above the maximum."""
    limit, steering = controller(4, minimum=3, maximum=6)
    limit.held = 4
    steering.observe(load(0))
    assert limit.limit == 6
    for waiting in range(1, 9):
        steering.observe(load(waiting))
    assert limit.limit == 3


def test_it_does_not_grow_for_a_client_that_asks_less():
    """An idle hour must not end in a burst."""
    limit, steering = controller(16)
    limit.held = 3
    steering.observe(load(0))
    steering.observe(None)
    assert limit.limit == 16


async def test_polling_reads_only_while_something_is_under_way():
    """On an injected clock: one reading per interval, none when idle."""
    limit, steering = controller(2, maximum=64)
    ticks: Iterator[int] = iter((0, 0, 2, 4))
    readings = 0

    async def sleep(seconds: float) -> None:
        assert seconds == 1.0
        try:
            limit.held = next(ticks)
        except StopIteration:
            raise asyncio.CancelledError from None

    async def read() -> Load:
        nonlocal readings
        readings += 1
        return load(0)

    with pytest.raises(asyncio.CancelledError):
        await steering.run(read, sleep=sleep)
    assert (readings, limit.limit) == (2, 8)


@pytest.mark.parametrize(
    "bounds", [{"minimum": 0}, {"start": 600}, {"minimum": 20, "start": 10}, {"interval": 0}]
)
def test_senseless_bounds_are_refused(bounds: dict[str, int]):
    """Before anything is started."""
    with pytest.raises(ConfigurationError):
        Adaptive(**bounds)
    with pytest.raises(ConfigurationError):
        Limit(0)


async def test_all_that_wait_may_be_cancelled_at_once():
    """Each gets its cancellation, not an error of ours, and the places are free again."""
    limit = Limit(1)

    async def hold() -> None:
        async with limit:
            await asyncio.Event().wait()

    tasks = [asyncio.create_task(hold()) for _ in range(3)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ends] == [asyncio.CancelledError] * 3
    assert (limit.held, limit.waiting) == (0, 0)
    async with asyncio.timeout(5), limit:
        assert limit.held == 1
