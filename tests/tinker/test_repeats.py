"""Requests that are sent again: how long they are known, and what is kept of failures."""

from __future__ import annotations

import asyncio

import pytest
from fastapi import Request

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.repeats import Repeats


def _request(key: str, *, user: str = "ada", path: str = "/x") -> Request:
    headers = [(b"x-idempotency-key", key.encode())]
    scope = {
        "type": "http",
        "method": "POST",
        "scheme": "http",
        "server": ("localhost", 80),
        "path": path,
        "query_string": b"",
        "headers": headers,
        "state": {"user": user},
    }
    return Request(scope)


class Work:
    """Something to do once."""

    def __init__(self) -> None:
        self.done = 0
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def __call__(self) -> int:
        """Do it."""
        self.done += 1
        await self.go_on.wait()
        return self.done


async def test_a_user_who_sends_much_pushes_out_their_own_answers():
    """Never those of others, and none that is still in progress."""
    repeats, work, slow = Repeats(), Work(), Work()
    slow.go_on.clear()
    in_progress = asyncio.create_task(repeats.once(_request("slow"), slow))
    assert await repeats.once(_request("a", user="bob"), work) == 1
    for number in range(200):
        await repeats.once(_request(str(number)), work)
    assert await repeats.once(_request("a", user="bob"), work) == 1
    assert await repeats.once(_request("199"), work) == 201
    assert await repeats.once(_request("0"), work) == 202
    assert await repeats.once(_request("0", path="/y"), work) == 203
    again = asyncio.create_task(repeats.once(_request("slow"), slow))
    slow.go_on.set()
    assert await asyncio.gather(in_progress, again) == [1, 1]


async def test_a_failure_is_not_kept_and_a_client_that_leaves_ends_nothing():
    """What was begun goes on, for the one who asks again."""
    repeats, work = Repeats(), Work()

    async def fail() -> None:
        raise TinkerError("no")

    with pytest.raises(TinkerError):
        await repeats.once(_request("a"), fail)
    assert await repeats.once(_request("a"), work) == 1
    work.go_on.clear()
    first = asyncio.create_task(repeats.once(_request("b"), work))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    first.cancel()
    work.go_on.set()
    assert await repeats.once(_request("b"), work) == 2
