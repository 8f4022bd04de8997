"""A bounded number of tasks that share one stream of work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")


async def run_workers(
    work: Callable[[Item], Awaitable[object]],
    items: Iterable[Item],
    *,
    count: int,
    tick: Callable[[], object] = lambda: None,
    interval: float = 0.5,
) -> None:
    """Await `work` for every item, at most `count` at a time; items are taken when needed.

    `tick` is called every `interval` seconds, whenever a worker ends, and thus at the end. The
    first exception, of `work` or of `tick`, is raised once all other work has been cancelled.
    """
    remaining = iter(items)

    async def worker() -> None:
        for item in remaining:
            await work(item)

    workers = {asyncio.create_task(worker()) for _ in range(count)}
    running = workers
    try:
        while running:
            done, running = await asyncio.wait(
                running, timeout=interval, return_when=asyncio.FIRST_EXCEPTION
            )
            for task in done:
                task.result()
            tick()
    finally:
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
