"""The order in which waiting calls reach an engine."""

from __future__ import annotations

import asyncio

import pytest

from enginehouse.arena.slots import MOST_SLOTS, Rank, Slots
from enginehouse.core.sampler import Load


async def settle() -> None:
    """Let every task go on as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_small_groups_go_first_then_the_farthest_behind():
    """Whatever came first."""
    slots = Slots(1, wake=asyncio.Event())
    order: list[str] = []
    going = asyncio.Event()

    async def call(name: str, rank: Rank) -> None:
        async with slots.place(rank):
            if name == "first":
                await going.wait()
            order.append(name)

    ranks = {
        "first": Rank(5, 9, 9),
        "vote": Rank(5, 0, 5),
        "late opinion": Rank(1, 3, 0),
        "opinion": Rank(1, 2, 4),
        "poll": Rank(2, 0, 3),
    }
    async with asyncio.TaskGroup() as group:
        for name, rank in ranks.items():
            group.create_task(call(name, rank))
            await settle()
        going.set()
    assert order == ["first", "opinion", "late opinion", "poll", "vote"]
    assert slots.in_flight == 0


async def test_a_free_place_waits_for_what_the_last_answer_leads_to():
    """The next call of the same team may rank before those that wait already."""
    slots = Slots(1, wake=asyncio.Event())
    order: list[str] = []

    async def team() -> None:
        async with slots.place(Rank(1, 0, 0)):
            order.append("poll")
        await asyncio.create_task(asyncio.sleep(0))
        async with slots.place(Rank(1, 0, 1)):
            order.append("opinion")

    async def other() -> None:
        async with slots.place(Rank(5, 0, 0)):
            order.append("other")

    async with asyncio.TaskGroup() as group:
        group.create_task(team())
        group.create_task(other())
    assert order == ["poll", "opinion", "other"]


async def test_cancelled_calls_leave_no_trace():
    """Neither while they wait, nor when they were just let in."""
    slots = Slots(1, wake=asyncio.Event())

    async def call() -> None:
        async with slots.place(Rank(1, 0, 0)):
            await asyncio.sleep(3600)

    tasks = [asyncio.create_task(call()) for _ in range(3)]
    await settle()
    tasks[1].cancel()
    await settle()
    tasks[0].cancel()
    await asyncio.gather(*tasks[:2], return_exceptions=True)
    await settle()
    assert slots.in_flight == 1
    tasks[2].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[2]
    assert slots.in_flight == 0
    async with slots.place(Rank(1, 0, 0)):
        assert slots.in_flight == 1


async def test_a_place_that_is_handed_to_a_cancelled_call_goes_on():
    """Cancelled in the very moment in which the place becomes free."""
    slots = Slots(1, wake=asyncio.Event())
    first = asyncio.Event()

    async def call(until: asyncio.Event | None) -> None:
        async with slots.place(Rank(1, 0, 0)):
            if until:
                await until.wait()

    one = asyncio.create_task(call(first))
    two, three = (asyncio.create_task(call(None)) for _ in range(2))
    await settle()
    first.set()
    await asyncio.sleep(0)
    two.cancel()
    await asyncio.gather(one, two, three, return_exceptions=True)
    assert three.exception() is None
    assert slots.in_flight == 0


async def test_hunger():
    """A server is hungry until enough calls wait."""
    wake = asyncio.Event()
    slots = Slots(wake=wake)
    slots.bound(2)
    slots.bound(5)
    assert slots.count == 2
    going = asyncio.Event()

    async def call() -> None:
        async with slots.place(Rank(1, 0, 0)):
            await going.wait()

    tasks = [asyncio.create_task(call()) for _ in range(20)]
    await settle()
    assert not slots.hungry
    going.set()
    await asyncio.gather(*tasks)
    assert slots.hungry
    assert wake.is_set()


async def test_slots_grow_while_the_server_takes_all():
    """They double if all are in flight and none waits; a fixed number stays."""
    slots = Slots(wake=asyncio.Event())
    first = slots.count
    slots.follow(Load(running=10, waiting=0))
    assert slots.count == first, "not all were in flight"
    slots.in_flight = first
    slots.follow(Load(running=first - 3, waiting=3))
    assert slots.count == first, "the server was full"
    slots.follow(Load(running=first, waiting=0))
    assert slots.count == 2 * first
    for _ in range(10):
        slots.in_flight = slots.count
        slots.follow(Load(running=slots.count, waiting=0))
    assert slots.count == MOST_SLOTS
    fixed = Slots(8, wake=asyncio.Event())
    fixed.in_flight = 8
    fixed.follow(Load(running=8, waiting=0))
    assert fixed.count == 8
