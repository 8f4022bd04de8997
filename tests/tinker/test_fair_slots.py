"""Places are given out fairly, and none is lost."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from enginehouse.tinker.fair_slots import FairSlots


class Work:
    """Pieces of work that hold a place until they are told to end; `begun` is their order."""

    def __init__(self, slots: FairSlots) -> None:
        self.slots = slots
        self.begun: list[str] = []
        self.running: dict[str, list[asyncio.Event]] = {}

    def add(self, user: str, *, cost: float = 1.0, places: int = 1) -> asyncio.Task[None]:
        """Ask for places."""
        return asyncio.create_task(self._hold(user, cost, places))

    async def _hold(self, user: str, cost: float, places: int) -> None:
        async with self.slots.slot(user, cost=cost, places=places):
            self.begun.append(user)
            end = asyncio.Event()
            self.running.setdefault(user, []).append(end)
            await end.wait()

    async def end(self, user: str) -> None:
        """End one piece of the user's work, and let the others move up."""
        self.running[user].pop(0).set()
        await settled()


async def settled() -> None:
    """Let everything happen that can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_no_user_has_more_than_its_share():
    """And the places of all are not exceeded."""
    work = Work(FairSlots(total=3, per_user=2))
    tasks = [work.add(user) for user in ("eve", "eve", "eve", "ada", "bob")]
    await settled()
    assert Counter(work.begun) == {"eve": 2, "ada": 1}
    assert work.slots.load() == {"eve": (2, 1), "ada": (1, 0), "bob": (0, 1)}
    assert "2 are the most of one user" in (work.slots.why_wait("eve") or "")
    assert "the 3 places" in (work.slots.why_wait("bob") or "")
    for user in ("ada", "eve", "eve", "eve", "bob"):
        await work.end(user)
    await asyncio.gather(*tasks)
    assert work.slots.load() == {}
    assert work.slots.why_wait("eve") is None


async def test_large_pieces_take_several_places():
    """No more than a user's share; who is next is waited for, and not passed by smaller ones."""
    work = Work(FairSlots(total=4, per_user=3))
    tasks = [work.add("eve", places=1000), work.add("eve"), work.add("ada")]
    await settled()
    assert work.begun == ["eve", "ada"]
    tasks += [work.add("bob", places=2), work.add("ada", cost=5)]
    await settled()
    assert work.slots.load() == {"eve": (3, 1), "ada": (1, 1), "bob": (0, 1)}
    assert "the 4 places" in (work.slots.why_wait("cid", places=9) or "")
    await work.end("ada")
    assert work.begun == ["eve", "ada"]  # Bob has waited longest, and one place is too few
    await work.end("eve")
    assert work.begun[2] == "bob"
    assert Counter(work.begun[3:]) == {"eve": 1, "ada": 1}
    for user in ("bob", "eve", "ada"):
        await work.end(user)
    await asyncio.gather(*tasks)
    assert work.slots.load() == {}


async def test_what_was_charged_too_much_is_given_back():
    """So that an answer which was short costs what it was, not what it might have been."""
    work = Work(FairSlots(total=1, per_user=1))
    tasks = [work.add("eve", cost=100), work.add("ada", cost=10), work.add("ada", cost=10)]
    tasks += [work.add("eve", cost=100)]
    await settled()
    work.slots.charge("eve", -99)
    await work.end("eve")
    for _ in range(3):
        await work.end(work.begun[-1])
    await asyncio.gather(*tasks)
    assert work.begun == ["eve", "ada", "eve", "ada"]


async def test_users_take_turns_by_what_they_were_given():
    """Eve's pieces cost three times as much, so Ada gets three for one of hers."""
    work = Work(FairSlots(total=1, per_user=1))
    tasks = [work.add("eve", cost=3) for _ in range(3)] + [work.add("ada") for _ in range(9)]
    for _ in tasks:
        await settled()
        await work.end(work.begun[-1])
    await asyncio.gather(*tasks)
    first = work.begun[:8]
    assert Counter(first) == {"ada": 6, "eve": 2}


async def test_cancelled_pieces_leave_a_new_one_of_their_user_alone():
    """It came between the ends of two that were cancelled while a place became free."""
    work = Work(FairSlots(total=1, per_user=1))
    first = work.add("eve")
    await settled()
    cancelled = [work.add("ada") for _ in range(2)]
    await settled()
    work.running["eve"].pop().set()
    cancelled[0].cancel()
    new = work.add("ada")
    cancelled[1].cancel()
    await settled()
    assert work.slots.load() == {"ada": (1, 0)}
    await work.end("ada")
    await asyncio.gather(first, *cancelled, new, return_exceptions=True)
    assert work.slots.load() == {}


@pytest.mark.parametrize("moment", ["waiting", "just given", "running"])
async def test_a_cancelled_piece_gives_its_place_back(moment: str):
    """Whenever it is cancelled."""
    work = Work(FairSlots(total=1, per_user=1))
    first = work.add("eve")
    await settled()
    second = work.add("ada")
    await settled()
    if moment == "running":
        first.cancel()
    elif moment == "waiting":
        second.cancel()
        await settled()
        first.cancel()
    else:
        work.running["eve"].pop(0).set()
        await asyncio.sleep(0)  # the place is Ada's now, whose task has not noticed
        second.cancel()
    await settled()
    third = work.add("bob")
    await settled()
    if moment == "running":
        await work.end("ada")
    assert work.begun[-1] == "bob"
    await work.end("bob")
    await asyncio.gather(first, second, third, return_exceptions=True)
    assert work.slots.load() == {}
