"""When the next request to a hosted API goes."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.layers import exchange, settled, whole_reply

from enginehouse.client.exchange import Exchange, Reply
from enginehouse.client.pacing import Pacing
from enginehouse.core.errors import RateLimitedError

DATE = "Wed, 21 Oct 2026 07:28:00 GMT"


class Clock:
    """Time that passes only by waiting."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waits: list[float] = []

    async def sleep(self, seconds: float) -> None:
        """Note the wait and be there."""
        self.waits.append(round(seconds, 6))
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    """A fresh one."""
    return Clock()


class Api:
    """An API below the pacing, with a patience of a minute and ten minutes of endurance."""

    def __init__(self, clock: Clock) -> None:
        self.pacing = Pacing(patience=60, endurance=600, clock=lambda: clock.now, sleep=clock.sleep)

    async def ask(self, headers: dict[str, str] | None = None, *, refused: float = -1) -> None:
        """One request, answered at once with these headers, or refused for so many seconds."""
        await self.begin(answered(headers, refused=refused))

    async def begin(self, reply: Reply | asyncio.Future[Reply]) -> Reply:
        """One request, answered with `reply`."""

        async def forward(_: Exchange) -> Reply:
            return reply if isinstance(reply, Reply) else await reply

        return await self.pacing.send(exchange(), forward)


def answered(headers: dict[str, str] | None = None, *, refused: float = -1) -> Reply:
    """A reply with these headers, or a refusal."""
    error = RateLimitedError("slow down", retry_after=refused) if refused >= 0 else None
    return whole_reply(error=error, **(headers or {}))


@pytest.fixture
def api(clock: Clock) -> Api:
    """A fresh one."""
    return Api(clock)


def told(remaining: int, reset: str, kind: str = "requests") -> dict[str, str]:
    """OpenAI's headers."""
    return {f"x-ratelimit-remaining-{kind}": str(remaining), f"x-ratelimit-reset-{kind}": reset}


async def test_a_server_without_such_headers_is_never_waited_for(api: Api, clock: Clock):
    """However much is asked."""
    for _ in range(1000):
        await api.ask({"Content-Type": "application/json"})
    assert clock.waits == []


@pytest.mark.parametrize(
    "headers",
    [
        told(0, "20s"),
        told(0, "20s", kind="tokens"),
        {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "20"},
        {
            "anthropic-ratelimit-requests-remaining": "0",
            "anthropic-ratelimit-requests-reset": "2026-10-21T07:28:20Z",
            "Date": DATE,
        },
        {
            "anthropic-ratelimit-output-tokens-remaining": "0",
            "anthropic-ratelimit-output-tokens-reset": "2026-10-21T07:28:20Z",
            "Date": DATE,
        },
    ],
)
async def test_when_nothing_remains_the_next_request_waits_for_the_reset(
    api: Api, clock: Clock, headers: dict[str, str]
):
    """Once; then it goes, and so do those behind it."""
    for given in (headers, {}, {}):
        await api.ask(given)
    assert [round(wait) for wait in clock.waits] == [20]


async def test_requests_in_flight_count_against_what_remains(api: Api, clock: Clock):
    """The reply to the first of five says that three remain: four are taken already."""
    loop = asyncio.get_running_loop()
    replies = [loop.create_future() for _ in range(5)]
    tasks = [asyncio.create_task(api.begin(reply)) for reply in replies]
    await settled()
    replies[0].set_result(answered(told(3, "9s")))
    await tasks[0]
    await api.ask()
    assert clock.waits == [9]
    for reply in replies[1:]:
        reply.set_result(answered())
    await asyncio.gather(*tasks)


async def test_a_window_that_was_refilled_is_a_window_and_no_more(api: Api, clock: Clock):
    """Those who waited do not all come at once: after the limit's worth, the next one waits."""
    await api.ask(told(0, "20s") | {"x-ratelimit-limit-requests": "3"})
    for _ in range(7):
        await api.ask()
    assert clock.waits == [20, 20, 20]


async def test_a_late_reply_to_an_early_request_is_no_news(api: Api, clock: Clock):
    """What a later request's reply said, holds."""
    early: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    first = asyncio.create_task(api.begin(early))
    await settled()
    await api.ask(told(50, "9s"))
    early.set_result(answered(told(0, "9s")))
    await first
    await api.ask()
    assert clock.waits == []


async def test_a_reset_beyond_the_patience_is_an_error_and_nothing_is_sent(api: Api, clock: Clock):
    """It says for how long, and what to do."""
    await api.ask(told(0, "6m0s"))
    with pytest.raises(RateLimitedError, match="another 360 s") as caught:
        await api.ask()
    assert caught.value.retry_after == 360
    assert "--concurrency" in str(caught.value)
    assert clock.waits == []


async def test_a_refusal_holds_back_everybody(api: Api, clock: Clock):
    """For as long as it asked for."""
    await api.ask(refused=5.0)
    await api.ask()
    assert clock.waits == [5]


async def test_a_storm_without_an_end_is_given_up(api: Api, clock: Clock):
    """After the endurance nothing waits; the first success ends that, too."""
    while not api.pacing.exhausted:
        await api.ask(refused=30.0)
    assert 600 < sum(clock.waits) < 700
    waited = len(clock.waits)
    await api.ask()
    assert len(clock.waits) == waited
    await api.ask(refused=30.0)
    await api.ask()
    assert len(clock.waits) > waited


async def test_cancelled_while_it_waits():
    """It is not sent."""
    pacing, sent = Pacing(patience=7200, endurance=7200), []

    async def forward(asked: Exchange) -> Reply:
        sent.append(asked)
        return answered(refused=3600.0)

    await pacing.send(exchange(), forward)
    waiting = asyncio.create_task(pacing.send(exchange(), forward))
    await settled()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(sent) == 1
