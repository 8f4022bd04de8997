"""Who may be in flight together after an engine's death, without an engine."""

from __future__ import annotations

import asyncio

import pytest

from enginehouse.client.admission import Admission
from enginehouse.client.exchange import Call
from enginehouse.core.errors import ServerGoneError

NEVER = 3600.0


def call(deaths: int = 0) -> Call:
    """A call that was present at so many deaths."""
    made = Call()
    made.deaths = deaths
    return made


def entering(admission: Admission, *calls: Call) -> list[asyncio.Task[None]]:
    """Each on its way in."""
    return [asyncio.create_task(admission.enter(c)) for c in calls]


async def settle() -> None:
    """Let everything that can go on go on."""
    for _ in range(5):
        await asyncio.sleep(0)


def opened(stagger: float = NEVER) -> Admission:
    """An admission whose engine works."""
    admission = Admission(stagger=stagger)
    admission.open()
    return admission


async def test_nobody_waits_while_the_engine_works():
    """Fresh calls get in at once, any number of them; while it is down they wait."""
    admission = opened()
    calls = [call() for _ in range(100)]
    for one in calls:
        await admission.enter(one)
    assert admission.in_flight == set(calls)
    admission.close()
    (late,) = entering(admission, call())
    await settle()
    assert not late.done()
    for one in calls:
        admission.leave(one)
    admission.open()
    await late


async def test_suspects_return_one_by_one_and_nothing_new_between():
    """The next suspect gets in when the one before has left; the fresh wait for all of them."""
    admission = opened()
    suspects = [call(1) for _ in range(3)]
    fresh = call()
    entered = entering(admission, *suspects, fresh)
    for index, suspect in enumerate(suspects):
        await settle()
        assert [task.done() for task in entered] == [n <= index for n in range(4)]
        assert admission.in_flight == {suspect}
        admission.leave(suspect)
    await asyncio.gather(*entered)
    assert admission.in_flight == {fresh}


async def test_a_long_answer_does_not_hold_the_suspects_up():
    """After the stagger the next one returns although the last is still in flight."""
    admission = opened(stagger=0.0)
    suspects = [call(1) for _ in range(3)]
    async with asyncio.timeout(10):
        await asyncio.gather(*entering(admission, *suspects))
    assert admission.in_flight == set(suspects)


async def test_what_was_at_two_deaths_is_alone():
    """It waits until nothing is in flight, and nothing else gets in before it has left."""
    admission = opened()
    suspect, isolated, fresh = call(1), call(2), call()
    entered = entering(admission, isolated, suspect, fresh)
    await settle()
    # The isolated one came first: it is alone, and even the suspect waits.
    assert admission.in_flight == {isolated}
    assert isolated.alone
    admission.leave(isolated)
    await settle()
    assert admission.in_flight == {suspect}
    admission.leave(suspect)
    await asyncio.gather(*entered)


async def test_death_counts_for_what_is_in_flight_only():
    """Those that wait were not there."""
    admission = opened()
    there, waiting = call(1), call(1)
    entered = entering(admission, there, waiting)
    await settle()
    assert admission.close() == [there]
    assert (there.deaths, waiting.deaths) == (2, 1)
    entered[1].cancel()
    await asyncio.gather(*entered, return_exceptions=True)


async def test_crowds_get_smaller_when_they_keep_dying():
    """One death changes nothing; the second one shrinks the crowd, unless a killer was found."""

    async def crowd_dies(admission: Admission) -> None:
        calls = [call() for _ in range(16)]
        tasks = entering(admission, *calls)
        await settle()
        admission.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in calls:
            admission.leave(one)
        admission.open()

    admission = opened()
    await crowd_dies(admission)
    assert admission.limit is None
    admission.explain()
    await crowd_dies(admission)
    assert admission.limit is None
    for limit in (4, 1, 1):
        await crowd_dies(admission)
        assert admission.limit == limit
    one, other = call(), call()
    await admission.enter(one)
    (waits,) = entering(admission, other)
    await settle()
    assert not waits.done()
    admission.leave(one)
    await waits


async def test_given_up():
    """Whoever waits is told, and whoever comes later."""
    admission = Admission()
    (waits,) = entering(admission, call())
    await settle()
    admission.close_for_good(ServerGoneError("over"))
    for late in (waits, *entering(admission, call())):
        with pytest.raises(ServerGoneError, match="over"):
            await late


async def test_cancelled_while_it_waits():
    """Its place goes to the next one."""
    admission = opened()
    first, second, third = call(1), call(1), call(1)
    one, two, three = entering(admission, first, second, third)
    await settle()
    two.cancel()
    await asyncio.gather(two, return_exceptions=True)
    admission.leave(first)
    await settle()
    assert admission.in_flight == {third}
    await asyncio.gather(one, three)
