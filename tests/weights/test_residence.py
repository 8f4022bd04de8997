from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from enginehouse.weights.residence import PATIENCE, Residence, Resident, State


@dataclass(eq=False, kw_only=True)
class Guest(Resident):
    """Somebody with a name."""

    name: str


class House:
    """A residence whose guests come and go as the test lets them; it keeps the book."""

    def __init__(self, places: int, *, patience: float = PATIENCE) -> None:
        self.places = places
        self.book: list[str] = []
        self.present: set[str] = set()
        self.most = 0
        self.doors = asyncio.Event()
        self.doors.set()
        self.refuse: Exception | None = None
        self.refuse_to_go: Exception | None = None
        self.residence: Residence[Guest] = Residence(
            places, come=self.come, go=self.go, patience=patience
        )

    async def come(self, guest: Guest) -> None:
        """One comes in, once the doors are open."""
        self.present.add(guest.name)
        self.most = max(self.most, len(self.present))
        await self.doors.wait()
        await asyncio.sleep(0)
        if self.refuse is not None:
            self.present.remove(guest.name)
            raise self.refuse
        self.book.append(f"+{guest.name}")

    async def go(self, guest: Guest) -> None:
        """One goes."""
        assert guest.held == 0
        await asyncio.sleep(0)
        self.present.remove(guest.name)
        self.book.append(f"-{guest.name}")
        if self.refuse_to_go is not None:
            raise self.refuse_to_go

    async def visit(self, guest: Guest, until: asyncio.Event | None = None) -> None:
        """Hold one for a moment, or until something happens."""
        async with self.residence.hold(guest):
            assert guest.name in self.present
            assert guest.state is State.IN
            await (until.wait() if until else asyncio.sleep(0))

    async def settle(self) -> None:
        """Let all that can happen happen."""
        for _ in range(30):
            await asyncio.sleep(0)


def guests(count: int) -> list[Guest]:
    """So many, by the letters."""
    return [Guest(name=chr(ord("a") + number)) for number in range(count)]


async def until(condition: Callable[[], bool]) -> None:
    """Let the others run until it holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0)


async def test_one_comes_once_and_stays():
    """Many visits, at once and later, are one arrival."""
    house, (a,) = House(1), guests(1)
    await asyncio.gather(*(house.visit(a) for _ in range(5)))
    await house.visit(a)
    assert house.book == ["+a"]
    assert (a.held, a.waiting) == (0, [])


async def test_the_least_recently_used_goes():
    """By the end of the last visit, not by arrival."""
    house, (a, b, c) = House(2), guests(3)
    for guest in (a, b, a, c):
        await house.visit(guest)
    assert house.book == ["+a", "+b", "-b", "+c"]


async def test_one_that_is_held_never_goes():
    """Even where it is the least recently used."""
    house, (a, b, c) = House(2), guests(3)
    leave = asyncio.Event()
    held = asyncio.create_task(house.visit(a, leave))
    await house.settle()
    await house.visit(b)
    await house.visit(c)
    assert house.book == ["+a", "+b", "-b", "+c"]
    leave.set()
    await held


async def test_when_all_are_held_the_next_one_waits():
    """And comes in as soon as one of them is free."""
    house, (a, b) = House(1), guests(2)
    leave = asyncio.Event()
    held = asyncio.create_task(house.visit(a, leave))
    await house.settle()
    waiting = asyncio.create_task(house.visit(b))
    await house.settle()
    assert not waiting.done()
    assert len(b.waiting) == 1
    leave.set()
    await asyncio.gather(held, waiting)
    assert house.book == ["+a", "-a", "+b"]


async def test_first_come_first_served():
    """Among those who wait."""
    house, (a, *others) = House(1), guests(5)
    leave = asyncio.Event()
    held = asyncio.create_task(house.visit(a, leave))
    await house.settle()
    waiting = [asyncio.create_task(house.visit(guest)) for guest in others]
    await house.settle()
    leave.set()
    await asyncio.gather(held, *waiting)
    assert [line for line in house.book if line[0] == "+"] == ["+a", "+b", "+c", "+d", "+e"]


async def test_nobody_waits_forever():
    """A place that is never free for a moment is closed after a while, and reopened after that."""
    house, (a, b) = House(1, patience=0.01), guests(2)
    stop = asyncio.Event()

    async def busy() -> None:
        """Two visits of a that overlap for ever."""
        while not stop.is_set():
            await house.visit(a)

    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(busy())
        await house.settle()
        async with asyncio.timeout(10):
            await house.visit(b)
        await until(lambda: house.book.count("+a") == 2)
        stop.set()
    assert house.book[:3] == ["+a", "-a", "+b"]
    assert not a.closing


async def test_a_closed_one_reopens_when_the_others_give_up():
    """What waited for it is let in without its going."""
    house, (a, b) = House(1, patience=0.01), guests(2)
    leave = asyncio.Event()
    held = asyncio.create_task(house.visit(a, leave))
    await house.settle()
    waiting = asyncio.create_task(house.visit(b))
    await until(lambda: a.closing)
    late = asyncio.create_task(house.visit(a))
    await house.settle()
    assert not late.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await late
    leave.set()
    await held
    assert house.book == ["+a"]


class TestGivingUp:
    """An asker who is cancelled disturbs nobody, and the counts are right."""

    async def test_while_it_waits_for_a_place(self):
        """The place goes to the next one."""
        house, (a, b, c) = House(1), guests(3)
        leave = asyncio.Event()
        held = asyncio.create_task(house.visit(a, leave))
        await house.settle()
        first, second = (asyncio.create_task(house.visit(guest)) for guest in (b, c))
        await house.settle()
        first.cancel()
        leave.set()
        await asyncio.gather(held, second)
        assert house.book == ["+a", "-a", "+c"]
        assert (b.waiting, b.held, b.state) == ([], 0, State.OUT)

    async def test_while_it_comes(self):
        """It comes all the same, and another asker gets it."""
        house, (a,) = House(1), guests(1)
        house.doors.clear()
        first, second = (asyncio.create_task(house.visit(a)) for _ in range(2))
        await house.settle()
        first.cancel()
        house.doors.set()
        await second
        assert first.cancelled()
        assert house.book == ["+a"]
        assert a.held == 0

    async def test_in_the_very_moment_it_is_let_in(self):
        """It holds nothing after that."""
        house, (a, b) = House(1), guests(2)
        leave = asyncio.Event()
        held = asyncio.create_task(house.visit(a, leave))
        await house.settle()
        waiting = asyncio.create_task(house.visit(b))
        await house.settle()
        leave.set()
        await until(lambda: b.held == 1)
        waiting.cancel()
        await asyncio.gather(held, waiting, return_exceptions=True)
        assert (b.held, b.state) == (0, State.IN)
        await house.visit(a)

    async def test_while_it_holds(self):
        """Its place is free."""
        house, (a, b) = House(1), guests(2)
        task = asyncio.create_task(house.visit(a, asyncio.Event()))
        await house.settle()
        task.cancel()
        await house.visit(b)
        assert a.held == 0


class TestRefused:
    """One that cannot come is out, and everyone who waited for it is told."""

    async def test_everyone_is_told(self):
        """And the place is free for others."""
        house, (a, b) = House(1), guests(2)
        house.doors.clear()
        tasks = [asyncio.create_task(house.visit(a)) for _ in range(3)]
        await house.settle()
        house.refuse = ValueError("no")
        house.doors.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["no"] * 3
        house.refuse = None
        await house.visit(b)
        assert (a.state, a.held, a.waiting) == (State.OUT, 0, [])

    async def test_the_next_asker_tries_again(self):
        """A refusal is not remembered."""
        house, (a,) = House(1), guests(1)
        house.refuse = ValueError("no")
        with pytest.raises(ValueError, match="no"):
            await house.visit(a)
        house.refuse = None
        await house.visit(a)
        assert house.book == ["+a"]


class TestLeaving:
    """One that is to go is out when that is done."""

    async def test_it_goes_when_it_is_idle(self):
        """Whoever has it or waits for it has it first."""
        house, (a,) = House(1), guests(1)
        leave = asyncio.Event()
        held = asyncio.create_task(house.visit(a, leave))
        await house.settle()
        leaving = asyncio.create_task(house.residence.leave(a))
        await house.settle()
        assert not leaving.done()
        leave.set()
        await asyncio.gather(held, leaving)
        assert house.book == ["+a", "-a"]

    async def test_one_that_is_out(self):
        """There is nothing to wait for."""
        house, (a,) = House(1), guests(1)
        await house.residence.leave(a)
        assert house.book == []

    async def test_one_that_somebody_waits_for(self):
        """It comes, is held, and goes."""
        house, (a, b) = House(1), guests(2)
        leave = asyncio.Event()
        held = asyncio.create_task(house.visit(a, leave))
        await house.settle()
        waiting = asyncio.create_task(house.visit(b))
        await house.settle()
        leaving = asyncio.create_task(house.residence.leave(b))
        leave.set()
        await asyncio.gather(held, waiting, leaving)
        assert house.book == ["+a", "-a", "+b", "-b"]

    async def test_a_refusal_to_go_is_told(self):
        """The place is free all the same."""
        house, (a, b) = House(1), guests(2)
        await house.visit(a)
        house.refuse_to_go = ValueError("stays")
        with pytest.raises(ValueError, match="stays"):
            await house.residence.leave(a)
        await house.visit(b)

    async def test_a_change_of_mind(self):
        """One that is kept stays, and who waited for its end is released."""
        house, (a,) = House(1), guests(1)
        leave = asyncio.Event()
        held = asyncio.create_task(house.visit(a, leave))
        await house.settle()
        leaving = asyncio.create_task(house.residence.leave(a))
        await house.settle()
        house.residence.keep(a)
        await leaving
        leave.set()
        await held
        await house.settle()
        assert house.book == ["+a"]

    async def test_one_that_is_going_already(self):
        """It makes room for another: whoever wants it out waits for that."""
        house, (a, b) = House(1), guests(2)
        await house.visit(a)
        visit = asyncio.create_task(house.visit(b))
        await until(lambda: a.state is State.GOING)
        async with asyncio.timeout(10):
            await house.residence.leave(a)
        assert (a.state, "-a" in house.book) == (State.OUT, True)
        await visit

    async def test_one_that_is_wanted_again_while_it_goes(self):
        """It comes again for whoever waits for it, and is out when that one is served."""
        house, (a, b) = House(1), guests(2)
        await house.visit(a)
        visits = [asyncio.create_task(house.visit(b))]
        await until(lambda: a.state is State.GOING)
        visits.append(asyncio.create_task(house.visit(a)))
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await house.residence.leave(a)
        assert (a.state, house.book.count("-a")) == (State.OUT, 2)
        await asyncio.gather(*visits)

    async def test_one_that_cannot_come(self):
        """It is out, so there is nothing left to wait for."""
        house, (a,) = House(1), guests(1)
        house.doors.clear()
        visit = asyncio.create_task(house.visit(a))
        await house.settle()
        leaving = asyncio.create_task(house.residence.leave(a))
        await house.settle()
        house.refuse = ValueError("no")
        house.doors.set()
        async with asyncio.timeout(10):
            await leaving
        assert isinstance((await asyncio.gather(visit, return_exceptions=True))[0], ValueError)

    async def test_one_whose_last_asker_gives_up(self):
        """It never comes, and nobody waits for that."""
        house, (a, b) = House(1), guests(2)
        stop = asyncio.Event()
        held = asyncio.create_task(house.visit(a, stop))
        await house.settle()
        visit = asyncio.create_task(house.visit(b))
        await house.settle()
        leaving = asyncio.create_task(house.residence.leave(b))
        await house.settle()
        assert not leaving.done()
        visit.cancel()
        async with asyncio.timeout(10):
            await leaving
        stop.set()
        await held
        assert house.book == ["+a"]

    async def test_an_idle_one_goes_at_once(self):
        """Nobody need want its place."""
        house, (a,) = House(1), guests(1)
        await house.visit(a)
        house.residence.retire(a)
        await house.settle()
        assert house.book == ["+a", "-a"]


@pytest.mark.parametrize("seed", range(20))
async def test_any_order_of_events(seed):
    """Forty askers for nine guests in three places, some of whom give up or are refused.

    There are never more than three; whoever was not cancelled was served or told the refusal;
    whoever waits for one's end sees it; nothing stays held.
    """
    rng = random.Random(seed)
    house, everyone = House(3, patience=0.001), guests(9)
    leaving: list[asyncio.Task[None]] = []

    async def ask(guest: Guest, pauses: int) -> None:
        for _ in range(pauses):
            await asyncio.sleep(0)
        async with house.residence.hold(guest):
            assert guest.name in house.present
            for _ in range(pauses % 7):
                await asyncio.sleep(0)

    tasks = [asyncio.create_task(ask(rng.choice(everyone), rng.randrange(60))) for _ in range(40)]
    doomed = rng.sample(tasks, 10)
    for task in doomed:
        for _ in range(rng.randrange(12)):
            await asyncio.sleep(0)
        task.cancel()
        house.refuse = ValueError("no") if rng.random() < 0.3 else None
        if rng.random() < 0.2:
            house.residence.retire(rng.choice(everyone))
        if rng.random() < 0.6:
            leaving.append(asyncio.create_task(house.residence.leave(rng.choice(everyone))))
    async with asyncio.timeout(20):
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*leaving)
    await house.settle()
    for task, outcome in zip(tasks, outcomes, strict=True):
        assert outcome is None or task in doomed or str(outcome) == "no", outcome
    assert house.most <= 3
    assert all((guest.held, guest.waiting, guest.gone) == (0, [], None) for guest in everyone)
    assert {guest.name for guest in house.residence.inside} == house.present


async def test_owners_take_turns():
    """One guest of Ada's does not wait for all of Eve's, who were there before."""
    house = House(1)
    eves = [Guest(name=name, owner="eve") for name in "abcdef"]
    adas = [Guest(name=name, owner="ada") for name in "xy"]
    visits = [asyncio.create_task(house.visit(guest)) for guest in eves]
    await until(lambda: house.book == ["+a"])
    visits += [asyncio.create_task(house.visit(guest)) for guest in adas]
    await asyncio.gather(*visits)
    assert [entry for entry in house.book if entry[0] == "+"][:5] == ["+a", "+x", "+b", "+y", "+c"]
