"""Whether the time that a function takes grows with the length of a text or with its square.

Nothing here depends on how fast the machine is: a time is compared with another time of the same
function, or with that of a simple loop on the same machine.
"""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable

import pytest

_TIMES_LONGER = 8
_LIMIT = 20.0  # times the time; a quadratic function takes 64 times as long
_TRIES = 4  # the best counts, as the machine may be busy
_STEPS = 1_000_000  # of the loop that other times are compared with: 0.02 s on a fast CPU
_NEGLIGIBLE = 3  # such loops: below that, the fixed costs of a call blur the ratio
_HOPELESS = 150  # such loops for the short text: do not try the long one


def assert_linear(
    function: Callable[[str], object],
    text: Callable[[int], str],
    *,
    longest: int = 40_000,
    clock: Callable[[], float] = time.thread_time,
) -> None:
    """Fail the test if the function's CPU time grows much faster than the text it is given.

    `text` makes a text of about the given number of characters. Two are compared, one of
    `longest` characters and one eight times shorter. The function has to treat both in the same
    way: one that cuts its input off at a length takes a shorter `longest`.
    """
    short, long = text(longest // _TIMES_LONGER), text(longest)
    function(text(longest // 1000))  # do not measure what is loaded on first use
    shorter = longer = float("inf")
    for _ in range(_TRIES):
        shorter = min(shorter, _seconds(function, short, clock))
        if shorter > _HOPELESS * _seconds_of_loop(clock):
            break
        longer = min(longer, _seconds(function, long, clock))
        if longer <= max(_LIMIT * shorter, _NEGLIGIBLE * _seconds_of_loop(clock)):
            return
    pytest.fail(
        f"{len(short):,} characters of {short[:60]!r}… took {shorter:.3f} s, "
        f"{len(long):,} took {longer:.2f} s"
    )


def _seconds(function: Callable[[str], object], text: str, clock: Callable[[], float]) -> float:
    was_enabled = gc.isenabled()
    gc.disable()  # how long a collection takes depends on every object that is alive
    begin = clock()
    try:
        function(text)
    finally:
        seconds = clock() - begin
        if was_enabled:
            gc.enable()
    return seconds


@functools.cache
def _seconds_of_loop(clock: Callable[[], float]) -> float:
    text = "a" * _STEPS
    return min(_seconds(_walk, text, clock) for _ in range(3))


def _walk(text: str) -> int:
    count = 0
    for character in text:
        if character == "b":
            count += 1
    return count
