"""Whether the time that a function takes grows with the length of a text or with its square."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import pytest

_TIMES_LONGER = 8
_MOST = 20.0  # times the time; a quadratic function takes 64 times as long
_TRIES = 4  # the best counts, as the machine may be busy
_NEGLIGIBLE = 0.25  # seconds: below it, a ratio of two times says nothing
_HOPELESS = 3.0  # seconds for the short text


def assert_linear(
    function: Callable[[str], object], text: Callable[[int], str], *, longest: int = 100_000
) -> None:
    """Fail the test if the function's CPU time grows much faster than the text it is given.

    `text` makes a text of about the given number of characters. Two are compared, one of
    `longest` characters and one eight times shorter.
    """
    short, long = text(longest // _TIMES_LONGER), text(longest)
    function(text(longest // 1000))  # what is loaded on first use is not to be measured
    quick = taken = float("inf")
    for _ in range(_TRIES):
        quick = min(quick, _seconds(function, short))
        if quick > _HOPELESS:
            break
        taken = min(taken, _seconds(function, long))
        if taken <= max(_NEGLIGIBLE, _MOST * quick):
            return
    pytest.fail(
        f"{len(short):,} characters of {short[:60]!r}… took {quick:.3f} s, "
        f"{len(long):,} took {taken:.2f} s"
    )


def _seconds(function: Callable[[str], object], text: str) -> float:
    was_enabled = gc.isenabled()
    gc.disable()  # a collection takes as long as all that is alive wants
    begun = time.thread_time()
    try:
        function(text)
    finally:
        taken = time.thread_time() - begun
        if was_enabled:
            gc.enable()
    return taken
