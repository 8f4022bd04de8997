"""What a hosted API's headers say."""

from __future__ import annotations

import math

import pytest

from enginehouse.client.rate_limits import retry_after, seconds_until

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
