"""A hosted API's rate limits, as the headers of its replies state them.

Headers: Retry-After (RFC 9110, 10.2.3) and retry-after-ms; x-ratelimit-remaining-* and -reset-*
(https://platform.openai.com/docs/guides/rate-limits); anthropic-ratelimit-*-remaining and -reset
(https://docs.anthropic.com/en/api/rate-limits); X-RateLimit-Remaining and -Reset (OpenRouter).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from email.utils import parsedate_to_datetime

import msgspec

_PART = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)(ms|h|m|s)")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_EPOCH = 1e9  # a number above it is a moment, not a duration; above 1e12 it is in milliseconds
_EPOCH_MS = 1e12


class Budget(msgspec.Struct, frozen=True):
    """What remains of one quota, the seconds until it is refilled, and how much there is then."""

    remaining: float
    reset: float
    limit: float


def read_budgets(headers: Mapping[str, str], names: tuple[str, ...]) -> list[Budget]:
    """The budgets that the headers state; `names` have a gap for remaining, reset or limit."""
    budgets = []
    for name in names:
        if (given := headers.get(name.format("remaining"))) is not None:
            with suppress(ValueError):
                reset = seconds_until(
                    headers.get(name.format("reset"), ""), now=_server_time(headers)
                )
                limit = float(headers.get(name.format("limit"), math.inf))
                budgets.append(Budget(float(given), reset, max(1.0, limit)))
    return budgets


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that an error reply asks to wait; None if it names none, or none readable."""
    with suppress(KeyError, ValueError):
        return _bounded(float(headers["retry-after-ms"]) / 1000)
    given = headers.get("Retry-After")
    if given is None:
        return None
    with suppress(ValueError):
        return _bounded(float(given))
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(given).timestamp() - _server_time(headers))
    return None


def seconds_until(reset: str, *, now: float) -> float:
    """A reset header's value as seconds: 6m0s, 59.7s, 12ms, a number of seconds, or a moment.

    Moments: RFC 3339, or seconds or milliseconds since the epoch, as `now`. Raises ValueError.
    """
    parts = _PART.findall(reset)
    if parts and "".join(number + unit for number, unit in parts) == reset:
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)
    try:
        value = float(reset)
    except ValueError:
        return max(0.0, datetime.fromisoformat(reset).timestamp() - now)
    if not math.isfinite(value):
        raise ValueError(reset)
    if value > _EPOCH_MS:
        value /= 1000
    return max(0.0, value - now if value > _EPOCH else value)


def _server_time(headers: Mapping[str, str]) -> float:
    """Seconds since the epoch by the server's clock, or by our own if the server gives no date."""
    with suppress(KeyError, ValueError):
        return parsedate_to_datetime(headers["Date"]).timestamp()
    return time.time()


def _bounded(seconds: float) -> float | None:
    return seconds if 0 <= seconds < math.inf else None
