"""Judged by a clock that the functions themselves move, so that no machine is too slow for it."""

from __future__ import annotations

import pytest

from enginehouse.testing.growth import assert_linear


class Clock:
    """Moves when a function says how long it took, and a little each time it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """The time, a tick later than before."""
        self.now += 1e-3
        return self.now


@pytest.mark.parametrize("speed", [1e-9, 1e-6])
def test_linear_functions_pass(speed):
    """However slow they are."""
    clock = Clock()

    def function(text: str) -> None:
        clock.now += len(text) * speed

    assert_linear(function, lambda length: "a" * length, clock=clock)


@pytest.mark.parametrize("speed", [1e-10, 1e-3])
def test_quadratic_functions_fail(speed):
    """However fast they are."""
    clock = Clock()

    def function(text: str) -> None:
        clock.now += len(text) ** 2 * speed

    with pytest.raises(pytest.fail.Exception, match="characters of 'aaa"):
        assert_linear(function, lambda length: "a" * length, clock=clock)


def test_a_busy_machine_is_not_a_slow_function():
    """One of several tries is enough."""
    clock = Clock()
    calls = 0

    def function(text: str) -> None:
        nonlocal calls
        calls += 1
        clock.now += len(text) * (1e-4 if calls == 3 else 1e-6)

    assert_linear(function, lambda length: "a" * length, clock=clock)


def test_what_a_machine_does_in_a_moment_is_not_judged():
    """On the real clock a short text's time is mostly that of the call."""
    assert_linear(lambda text: sum(map(ord, text[: len(text) // 8 * 7])), lambda n: "a" * n)
