"""The estimate of the time that a run still needs."""

from __future__ import annotations

import pytest

from enginehouse.evaluation.remaining import RemainingTime


def test_too_few_answers_give_no_estimate():
    """A tenth of the requests, or ten, are enough."""
    remaining = RemainingTime(1000)
    remaining.begin(64)
    assert remaining.seconds(answered=0, elapsed=5) is None
    assert remaining.seconds(answered=9, elapsed=5) is None
    assert remaining.seconds(answered=10, elapsed=5) is not None
    assert RemainingTime(0).seconds(answered=0, elapsed=5) is None


def test_answered_requests_of_open_samples_count():
    """30 choices of four requests: after 22 answers, no sample need be complete."""
    remaining = RemainingTime(150)
    for requests in [4] * 30 + [1] * 30:
        remaining.begin(requests)
    assert remaining.seconds(answered=22, elapsed=21) == pytest.approx(106 / 44 * 21)


def test_a_steady_load_is_estimated_well_from_the_first_answers():
    """64 requests are done after 16 s, and 64 are half done: six a second."""
    remaining = RemainingTime(160)
    for _ in range(128):
        remaining.begin(1)
    for _ in range(64):
        remaining.finish(1)
    assert remaining.seconds(answered=64, elapsed=16) == pytest.approx(64 / 6)


def test_failed_samples_are_finished_and_further_requests_of_a_sample_are_not():
    """What fails is never answered; a repair is a request that nobody expected."""
    remaining = RemainingTime(20)
    for _ in range(10):
        remaining.begin(1)
        remaining.finish(1)
    assert remaining.seconds(answered=0, elapsed=10) == 10
    assert remaining.seconds(answered=15, elapsed=10) == 10


def test_nothing_is_left_at_the_end():
    """All requests are done."""
    remaining = RemainingTime(3)
    remaining.begin(3)
    remaining.finish(3)
    assert remaining.seconds(answered=3, elapsed=10) == 0


def test_slow_answers_after_quick_ones_are_expected_to_stay_slow():
    """100 choices in 10 s, then an answer every 2 s; of the last 15, half count as done."""
    remaining = RemainingTime(125)
    for _ in range(125):
        remaining.begin(1)
    for _ in range(100):
        remaining.finish(1)
    remaining.seconds(answered=100, elapsed=10)
    for number in range(1, 11):
        remaining.finish(1)
        left = remaining.seconds(answered=100 + number, elapsed=10 + 2 * number)
    assert left == pytest.approx(2 * (15 - 15 / 2))
