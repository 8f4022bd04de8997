"""What a hosted API's headers say, and when the next request goes."""

from __future__ import annotations

import math

import pytest

from enginehouse.client.rate_limits import Pace, retry_after, seconds_until
from enginehouse.core.errors import RateLimitedError

DATE = "Wed, 21 Oct 2026 07:28:00 GMT"
EPOCH = 1792567680.0  # that moment


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0.25"}, 0.25),
        ({"retry-after-ms": "120", "Retry-After": "1"}, 0.12),
        ({"retry-after-ms": "soon", "Retry-After": "1"}, 1.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:30 GMT", "Date": DATE}, 30.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:27:00 GMT", "Date": DATE}, 0.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "tomorrow"}, None),
    ],
)
def test_retry_after_in_all_its_forms(headers: dict[str, str], seconds: float | None):
    """Seconds, milliseconds and dates by the server's clock; nonsense is as good as nothing."""
    assert retry_after(headers) == seconds


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("6m0s", 360.0),
        ("59.764s", 59.764),
        ("12ms", 0.012),
        ("1h2m3s", 3723.0),
        ("0", 0.0),
        ("2.5", 2.5),
        (str(EPOCH + 9), 9.0),
        (str(int(EPOCH * 1000) + 1500), 1.5),
        ("2026-10-21T07:28:30Z", 30.0),
        ("2026-10-21T07:27:00Z", 0.0),
    ],
)
def test_resets_in_the_vendors_forms(given: str, seconds: float):
    """Go durations (OpenAI), moments (Anthropic), milliseconds since the epoch (OpenRouter)."""
    assert math.isclose(seconds_until(given, now=EPOCH), seconds, abs_tol=1e-3)


@pytest.mark.parametrize("given", ["", "soon", "5 minutes", "nan", "inf", "1x2s"])
def test_a_reset_that_is_none(given: str):
    """Is refused, so that nobody waits for it."""
    with pytest.raises(ValueError):  # noqa: PT011 (of three functions)
        seconds_until(given, now=EPOCH)


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


@pytest.fixture
def pace(clock: Clock) -> Pace:
    """With a patience of a minute, and ten minutes of endurance."""
    return Pace(patience=60, endurance=600, clock=lambda: clock.now, sleep=clock.sleep)


def told(remaining: int, reset: str, kind: str = "requests") -> dict[str, str]:
    """OpenAI's headers."""
    return {f"x-ratelimit-remaining-{kind}": str(remaining), f"x-ratelimit-reset-{kind}": reset}


async def test_a_server_without_such_headers_is_never_waited_for(pace: Pace, clock: Clock):
    """However much is asked."""
    for _ in range(1000):
        pace.note(await pace.turn(), {"Content-Type": "application/json"})
    assert clock.waits == []


@pytest.mark.parametrize(
    "headers",
    [
        told(0, "20s"),
        told(0, "20s", kind="tokens"),
        {"X-RateLimit-Remaining".lower(): "0", "x-ratelimit-reset": "20"},
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
    pace: Pace, clock: Clock, headers: dict[str, str]
):
    """Once; then it goes, and so do those behind it."""
    pace.note(await pace.turn(), {k: v for k, v in headers.items() if k != "Date"} | headers)
    await pace.turn()
    await pace.turn()
    assert [round(wait) for wait in clock.waits] == [20]


async def test_requests_under_way_count_against_what_remains(pace: Pace, clock: Clock):
    """The reply to the first of five says that three remain: four are taken already."""
    numbers = [await pace.turn() for _ in range(5)]
    pace.note(numbers[0], told(3, "9s"))
    await pace.turn()
    assert clock.waits == [9]


async def test_a_window_that_was_refilled_is_a_window_and_no_more(pace: Pace, clock: Clock):
    """Those who waited do not all come at once: after the limit's worth, the next one waits."""
    pace.note(await pace.turn(), told(0, "20s") | {"x-ratelimit-limit-requests": "3"})
    for _ in range(7):
        await pace.turn()
    assert clock.waits == [20, 20, 20]


async def test_a_late_reply_to_an_early_request_is_no_news(pace: Pace, clock: Clock):
    """What a later request's reply said, holds."""
    first, second = await pace.turn(), await pace.turn()
    pace.note(second, told(50, "9s"))
    pace.note(first, told(0, "9s"))
    await pace.turn()
    assert clock.waits == []


async def test_a_reset_beyond_the_patience_is_an_error_and_nothing_is_sent(
    pace: Pace, clock: Clock
):
    """It says for how long, and what to do."""
    pace.note(await pace.turn(), told(0, "6m0s"))
    with pytest.raises(RateLimitedError, match="another 360 s") as caught:
        await pace.turn()
    assert "--concurrency" in str(caught.value)
    assert clock.waits == []


async def test_a_refusal_holds_back_everybody(pace: Pace, clock: Clock):
    """For as long as it asked for."""
    await pace.turn()
    pace.refused(5.0)
    await pace.turn()
    assert clock.waits == [5]


async def test_a_storm_without_an_end_is_given_up(pace: Pace, clock: Clock):
    """After the endurance nothing waits; the first success ends that, too."""
    while not pace.exhausted:
        await pace.turn()
        pace.refused(30.0)
    assert 600 < sum(clock.waits) < 700
    waited = len(clock.waits)
    await pace.turn()
    assert len(clock.waits) == waited
    pace.succeeded()
    pace.refused(30.0)
    await pace.turn()
    assert len(clock.waits) > waited
