"""Work that is shared by a bounded number of tasks."""

from __future__ import annotations

import asyncio

import pytest

from enginehouse.runtime.workers import run_workers


async def test_every_item_is_worked_on_within_the_bound():
    """Items are taken when a worker is free, never all at once."""
    done: list[int] = []
    taken = in_flight = most = 0

    def items():
        nonlocal taken
        for number in range(20):
            taken += 1
            yield number

    async def work(number: int) -> None:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        assert taken <= len(done) + 3
        await asyncio.sleep(0)
        in_flight -= 1
        done.append(number)

    ticks: list[int] = []
    await run_workers(work, items(), count=3, tick=lambda: ticks.append(len(done)))
    assert sorted(done) == list(range(20))
    assert most == 3
    assert ticks[-1] == 20


@pytest.mark.parametrize("origin", ["work", "tick"])
async def test_the_first_error_cancels_the_rest(origin: str):
    """It is raised when the other work has ended."""
    ended: list[int] = []

    def tick() -> None:
        if origin == "tick":
            raise ValueError(origin)

    async def work(number: int) -> None:
        try:
            if number == 1 and origin == "work":
                raise ValueError(origin)
            await asyncio.Event().wait()
        finally:
            ended.append(number)

    with pytest.raises(ValueError, match=origin):
        await run_workers(work, range(9), count=3, tick=tick, interval=0.01)
    assert sorted(ended) == [0, 1, 2]
