"""When a request is asked again, and how long that waits."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from tests.support.layers import exchange, settled, whole_reply

from enginehouse.client.exchange import Exchange, Reply
from enginehouse.client.retry import Retries, Retrying
from enginehouse.core.errors import (
    BadRequestError,
    ConnectionFailedError,
    RateLimitedError,
    RequestTimeoutError,
    ServerFaultError,
    WireError,
)
from enginehouse.core.messages import TextPrompt
from enginehouse.core.sampler import Delivery, SampleRequest


class Play:
    """Fails with each error in turn, then succeeds; notes the pauses."""

    def __init__(self, *errors: WireError, status: bool = False) -> None:
        self.errors = list(errors)
        self.pauses: list[float] = []
        self.sent: list[Exchange] = []
        self.status = status

    async def attempt(self, asked: Exchange) -> Reply:
        """One attempt; an error is raised, or stands for the reply's status."""
        self.sent.append(asked)
        error = self.errors.pop(0) if self.errors else None
        if error is not None and not self.status:
            raise error
        return whole_reply("done", error=error)

    async def sleep(self, seconds: float) -> None:
        """No time passes."""
        self.pauses.append(seconds)

    async def run(self, retries: Retries, *, draw: float = 1.0) -> tuple[str, int]:
        """The value and the attempts it took."""
        layer = Retrying(retries, sleep=self.sleep, draw=lambda: draw)
        reply = await layer.send(exchange(), self.attempt)
        return reply.answer, reply.attempts


async def test_retryable_errors_are_retried_with_growing_pauses():
    """The bound of the pause doubles up to the cap."""
    play = Play(*(ConnectionFailedError("no") for _ in range(6)))
    value = await play.run(Retries(attempts=7, base=0.5, cap=4.0))
    assert value == ("done", 7)
    assert play.pauses == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]


async def test_the_pause_is_drawn_from_the_whole_interval():
    """Full jitter: down to no pause at all, so that clients do not come back together."""
    for draw, pause in ((0.0, 0.0), (0.25, 0.125)):
        play = Play(ServerFaultError("no"))
        await play.run(Retries(base=0.5), draw=draw)
        assert play.pauses == [pause]


async def test_attempts_are_bounded_and_the_last_error_is_raised():
    """The error is the server's own, with the number of attempts noted."""
    play = Play(ServerFaultError("first"), ServerFaultError("second"), ServerFaultError("third"))
    with pytest.raises(ServerFaultError, match="second") as caught:
        await play.run(Retries(attempts=2))
    assert caught.value.__notes__ == ["after 2 attempts"]
    assert len(play.pauses) == 1


@pytest.mark.parametrize("kind", [BadRequestError, RequestTimeoutError])
async def test_other_errors_are_not_retried(kind: type[WireError]):
    """Asking again would not help, or would double a wait that was too long already."""
    play = Play(kind("no"))
    with pytest.raises(kind):
        await play.run(Retries(attempts=5))
    assert play.pauses == []


async def test_retry_after_is_obeyed():
    """At least as long as the server asked for, however short the back-off would be."""
    play = Play(RateLimitedError("slow down", retry_after=30.0))
    await play.run(Retries(base=0.5), draw=0.5)
    assert play.pauses == [30.25]
    play = Play(RateLimitedError("slow down"))
    await play.run(Retries(base=0.5), draw=0.5)
    assert play.pauses == [0.25]


async def test_a_retry_after_beyond_patience_is_an_error_at_once():
    """A server that says "in an hour" does not hang a run."""
    play = Play(RateLimitedError("slow down", retry_after=3600.0))
    with pytest.raises(RateLimitedError):
        await play.run(Retries(patience=120.0))
    assert play.pauses == []


async def test_refusals_are_waited_out_and_are_no_failed_attempts():
    """A busy server is no broken one: five attempts are still left for what is broken."""
    busy = [RateLimitedError("slow down", retry_after=1.0) for _ in range(50)]
    broken = [ServerFaultError("no") for _ in range(4)]
    play = Play(*busy[:25], *broken, *busy[25:])
    value = await play.run(Retries(attempts=5, base=0.5), draw=0.0)
    assert value == ("done", 55)
    assert play.pauses == [1.0] * 25 + [0.0] * 4 + [1.0] * 25


async def test_refusals_end_with_the_endurance():
    """A request waits for so long in all, whether the server names a time or not."""
    play = Play(*(RateLimitedError("slow down", retry_after=30.0) for _ in range(9)))
    with pytest.raises(RateLimitedError) as caught:
        await play.run(Retries(endurance=100.0), draw=0.0)
    assert play.pauses == [30.0] * 4
    assert caught.value.__notes__ == ["after 5 attempts"]
    play = Play(*(RateLimitedError("slow down") for _ in range(1000)))
    with pytest.raises(RateLimitedError):
        await play.run(Retries(base=0.5, cap=20.0, endurance=100.0), draw=1.0)
    assert 100.0 < sum(play.pauses) <= 120.0


async def test_what_is_added_to_a_named_time_does_not_grow():
    """The server says how long it takes; more would only leave it idle."""
    play = Play(*(RateLimitedError("slow down", retry_after=1.0) for _ in range(9)))
    await play.run(Retries(base=0.5, cap=20.0), draw=1.0)
    assert play.pauses == [1.5] * 9


async def test_refusals_that_take_no_time_are_failed_attempts():
    """So that nothing loops for ever without waiting."""
    play = Play(*(RateLimitedError("slow down", retry_after=0.0) for _ in range(9)))
    with pytest.raises(RateLimitedError):
        await play.run(Retries(attempts=5, base=0.0))
    assert len(play.pauses) == 4


async def test_an_error_status_counts_like_a_failure():
    """The reply that comes back in the end is one without an error."""
    play = Play(ServerFaultError("no"), RateLimitedError("slow", retry_after=3.0), status=True)
    assert await play.run(Retries(base=0.5), draw=0.0) == ("done", 3)
    assert play.pauses == [0.0, 3.0]
    with pytest.raises(BadRequestError):
        await Play(BadRequestError("no"), status=True).run(Retries())


async def test_after_a_broken_connection_the_next_one_is_new():
    """The server may be closing the other kept connections, too."""
    play = Play(ServerFaultError("no"), ConnectionFailedError("no"), ServerFaultError("no"))
    await play.run(Retries())
    assert [asked.wire.fresh for asked in play.sent] == [False, False, True, True]


async def test_cancelled_between_attempts():
    """Nothing is sent after that."""
    play = Play(ServerFaultError("no"))
    layer = Retrying(Retries(base=3600.0), draw=lambda: 1.0)
    task = asyncio.create_task(layer.send(exchange(), play.attempt))
    await settled()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(play.sent) == 1


@pytest.mark.parametrize(("retries", "attempts"), [(0, 1), (2, 3), (None, 5)])
async def test_a_request_may_say_how_often_it_is_sent_again(retries, attempts):
    """None leaves it to the sampler."""
    play = Play(*(ConnectionFailedError("no") for _ in range(9)))
    request = SampleRequest(prompt=TextPrompt("x"), delivery=Delivery(max_retries=retries))
    layer = Retrying(Retries(attempts=5), sleep=play.sleep)
    with pytest.raises(ConnectionFailedError):
        await layer.send(msgspec.structs.replace(exchange(), sample=request), play.attempt)
    assert len(play.sent) == attempts
