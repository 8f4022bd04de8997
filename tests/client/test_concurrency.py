"""How many requests are in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from tests.support.layers import Below, exchange, settled

from enginehouse.client.concurrency import Adaptive, AdaptiveController, ConcurrencyLimit
from enginehouse.client.exchange import Exchange, Reply
from enginehouse.core.errors import ConfigurationError
from enginehouse.core.sampler import Load


class Holders:
    """Requests that hold a place until they are told to end."""

    def __init__(self, limit: ConcurrencyLimit, count: int) -> None:
        self.order: list[int] = []
        self.gates = [asyncio.Event() for _ in range(count)]
        self.tasks = [asyncio.create_task(self._hold(limit, i)) for i in range(count)]

    async def _hold(self, limit: ConcurrencyLimit, number: int) -> None:
        below = Below()
        below.end = self.gates[number]

        async def forward(asked: Exchange) -> Reply:
            self.order.append(number)
            return await below(asked)

        await limit.send(exchange(), forward)

    async def finish(self) -> None:
        """Let all end and wait for them."""
        for gate in self.gates:
            gate.set()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def test_no_more_than_the_limit_hold_it_first_come_first_served():
    """The rest wait in order."""
    limit = ConcurrencyLimit(2)
    holders = Holders(limit, 4)
    await settled()
    assert (limit.in_flight, limit.waiting, holders.order) == (2, 2, [0, 1])
    holders.gates[1].set()
    await settled()
    assert (limit.in_flight, limit.waiting, holders.order) == (2, 1, [0, 1, 2])
    await holders.finish()
    assert (limit.in_flight, limit.waiting, holders.order) == (0, 0, [0, 1, 2, 3])


async def test_resizing_lets_more_in_at_once_and_fewer_as_they_leave():
    """A smaller limit never takes back what is held."""
    limit = ConcurrencyLimit(1)
    holders = Holders(limit, 5)
    await settled()
    limit.resize(4)
    await settled()
    assert limit.in_flight == 4
    limit.resize(2)
    holders.gates[0].set()
    holders.gates[1].set()
    await settled()
    assert (limit.in_flight, limit.waiting) == (2, 1)
    await holders.finish()
    assert limit.in_flight == 0


async def test_a_cancelled_waiter_leaves_no_hole():
    """Neither one that waits, nor one that was just let in."""
    limit = ConcurrencyLimit(1)
    holders = Holders(limit, 4)
    await settled()
    holders.tasks[1].cancel()
    await settled()
    assert limit.waiting == 2
    holders.gates[0].set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    holders.tasks[2].cancel()
    await settled()
    assert (limit.in_flight, holders.order[-1]) == (1, 3)
    await holders.finish()
    assert (limit.in_flight, limit.waiting) == (0, 0)


def controller(start: int, **bounds: int) -> tuple[ConcurrencyLimit, AdaptiveController]:
    """A limit and its controller."""
    limit = ConcurrencyLimit(start)
    return limit, AdaptiveController(limit, bounds=Adaptive(start=start, **bounds))


def load(waiting: int) -> Load:
    """A queue of that length."""
    return Load(running=1, waiting=waiting)


def test_it_doubles_until_something_waits_then_grows_by_small_steps():
    """Slow start, then additive increase and multiplicative decrease."""
    limit, steering = controller(16, maximum=1000)
    seen = []
    for waiting in (0, 0, 0, 40, 20, 0, 0, 0):
        limit.in_flight = limit.limit
        steering.observe(load(waiting))
        seen.append(limit.limit)
    assert seen == [32, 64, 128, 96, 96, 102, 108, 114]


def test_a_stable_queue_is_left_alone_and_a_growing_one_shrinks_the_limit():
    """Some waiting keeps an engine busy; more and more does not."""
    limit, steering = controller(100, maximum=1000)
    seen = []
    for waiting in (5, 5, 5, 6, 50, 50, 3):
        limit.in_flight = limit.limit
        steering.observe(load(waiting))
        seen.append(limit.limit)
    assert seen == [75, 75, 75, 56, 42, 42, 42]


def test_bounds_are_kept():
    """Never below the minimum, never above the maximum."""
    limit, steering = controller(4, minimum=3, maximum=6)
    limit.in_flight = 4
    steering.observe(load(0))
    assert limit.limit == 6
    for waiting in range(1, 9):
        steering.observe(load(waiting))
    assert limit.limit == 3


def test_it_does_not_grow_for_a_client_that_asks_less():
    """An idle hour must not end in a burst."""
    limit, steering = controller(16)
    limit.in_flight = 3
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
            limit.in_flight = next(ticks)
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
        ConcurrencyLimit(0)


async def test_all_that_wait_may_be_cancelled_at_once():
    """Each gets its cancellation, not an error of ours, and the places are free again."""
    limit = ConcurrencyLimit(1)

    below = Below()
    tasks = [asyncio.create_task(limit.send(exchange(), below)) for _ in range(3)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ends] == [asyncio.CancelledError] * 3
    assert (limit.in_flight, limit.waiting) == (0, 0)
    below.end.set()
    async with asyncio.timeout(5):
        assert (await limit.send(exchange(), below)).answer == "answer"


async def test_a_stream_keeps_its_place_until_it_is_closed():
    """One that is left early, too; and closing it twice frees one place."""
    limit, below = ConcurrencyLimit(1), Below()
    below.end.set()
    reply = await limit.send(exchange(streamed=True), below)
    waiting = asyncio.create_task(limit.send(exchange(), below))
    await settled()
    assert (limit.in_flight, waiting.done()) == (1, False)
    reply.close()
    reply.close()
    await waiting
    assert limit.in_flight == 0


async def test_what_is_not_limited_passes():
    """An adapter can be loaded while requests for it hold every place."""
    limit, busy, below = ConcurrencyLimit(1), Below(), Below()
    holder = asyncio.create_task(limit.send(exchange(), busy))
    await settled()
    below.end.set()
    await limit.send(exchange(limited=False), below)
    assert limit.in_flight == 1
    busy.end.set()
    await holder
