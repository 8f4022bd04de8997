from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from enginehouse.statistics.intervals import (
    clustered_bootstrap,
    interval_of_ratio,
    wilson,
)


@given(st.integers(1, 5000), st.data(), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_wilson_agrees_with_scipy(trials, data, confidence):
    """Wilson's interval is scipy's, for every count and confidence."""
    successes = data.draw(st.integers(0, trials))
    expected = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    found = wilson(successes, trials, confidence=confidence)
    assert found is not None
    assert found.low == pytest.approx(expected.low, abs=1e-9)
    assert found.high == pytest.approx(expected.high, abs=1e-9)


def test_wilson_published_value():
    """81 of 263 gives 0.2553 to 0.3662 (Newcombe, Stat. Med. 17 (1998) 857, table I)."""
    found = wilson(81, 263)
    assert found is not None
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)
    assert found.method == "wilson"


@given(st.integers(1, 1000), st.data())
def test_wilson_holds_the_share_and_stays_inside(trials, data):
    """0 <= low <= share <= high <= 1, with width even at the extremes, and mirror symmetry."""
    successes = data.draw(st.integers(0, trials))
    found, mirrored = wilson(successes, trials), wilson(trials - successes, trials)
    assert found is not None
    assert mirrored is not None
    assert 0 <= found.low <= successes / trials <= found.high <= 1
    assert found.low < found.high
    assert found.low == pytest.approx(1 - mirrored.high, abs=1e-12)


def test_wilson_without_trials_is_none():
    """Nothing measured, no interval."""
    assert wilson(0, 0) is None


@pytest.mark.parametrize(("successes", "trials"), [(-1, 3), (4, 3)])
def test_wilson_refuses_impossible_counts(successes, trials):
    """More successes than trials is a caller's error, not a number."""
    with pytest.raises(ValueError, match="successes in"):
        wilson(successes, trials)


def test_bootstrap_agrees_with_theory_on_many_clusters():
    """For independent clusters the width is that of the normal approximation, within 10 %."""
    generator = np.random.default_rng(3)
    values = generator.normal(0.5, 0.1, 2000)
    found = clustered_bootstrap(values, np.ones(2000))
    assert found is not None
    half = 1.96 * values.std() / np.sqrt(2000)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)
    assert found.low < values.mean() < found.high


def test_bootstrap_ways_of_drawing_agree():
    """Counting equal clusters together gives the interval of drawing them one by one."""
    generator = np.random.default_rng(5)
    values = generator.integers(0, 5, 600).astype(float)
    weights = np.full(600, 4.0)
    grouped = clustered_bootstrap(values, weights, resamples=20_000)
    jitter = generator.uniform(-1e-9, 1e-9, 600)  # no two are equal: drawn one by one
    single = clustered_bootstrap(values + jitter, weights, resamples=20_000)
    assert grouped is not None
    assert single is not None
    assert grouped.low == pytest.approx(single.low, abs=2e-3)
    assert grouped.high == pytest.approx(single.high, abs=2e-3)


def test_bootstrap_is_wider_when_repeats_agree():
    """Four identical repeats of 50 items say no more than 50 items: clustering keeps it so."""
    values = np.array([0.0, 1.0] * 25)
    once = clustered_bootstrap(values, np.ones(50))
    four_times = clustered_bootstrap(4 * values, np.full(50, 4.0))
    assert once is not None
    assert once == four_times


def test_bootstrap_weighs_clusters():
    """The ratio is Σ values / Σ weights, not a mean of ratios."""
    values, weights = np.array([1.0] * 30 + [0.0] * 10), np.array([1.0] * 30 + [9.0] * 10)
    found = clustered_bootstrap(values, weights)
    assert found is not None
    assert found.low < 30 / 120 < found.high
    assert found.high < 0.75


def test_bootstrap_is_repeatable():
    """The same seed gives the same interval, another seed nearly the same."""
    values = np.random.default_rng(0).random(100)
    first, again = (clustered_bootstrap(values, np.ones(100), seed=1) for _ in range(2))
    other = clustered_bootstrap(values, np.ones(100), seed=2)
    assert first == again
    assert other is not None
    assert first is not None
    assert other.low == pytest.approx(first.low, abs=0.02)
    assert other != first


@pytest.mark.parametrize("count", [0, 1])
def test_bootstrap_needs_two_clusters(count):
    """One cluster says nothing about how clusters vary."""
    assert clustered_bootstrap(np.ones(count), np.ones(count)) is None


def test_single_zero_or_one_answers_use_wilson():
    """One 0-or-1 answer per item is a plain proportion; failed items (weight 0) do not count."""
    values = np.array([[1.0], [0.0], [1.0], [7.0]])
    weights = np.array([[1.0], [1.0], [1.0], [0.0]])
    assert interval_of_ratio(values, weights) == wilson(2, 3)


def test_repeats_use_the_bootstrap():
    """Several answers per item are clustered by item."""
    values = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]] * 10)
    found = interval_of_ratio(values, np.ones((30, 2)))
    assert found is not None
    assert found.method == "bootstrap by item"


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_equal_answers_still_have_a_width(value):
    """15 items, 4 repeats, all wrong (or all right): Wilson with 15 trials, not zero width."""
    found = interval_of_ratio(np.full((15, 4), value), np.ones((15, 4)))
    expected = wilson(15 * value, 15)
    assert found is not None
    assert expected is not None
    assert (found.low, found.high) == (expected.low, expected.high)
    assert found.method == "wilson by item"


def test_nothing_counted_has_no_interval():
    """All weights 0, or no items at all."""
    assert interval_of_ratio(np.ones((3, 2)), np.zeros((3, 2))) is None
    assert interval_of_ratio(np.ones((0, 2)), np.zeros((0, 2))) is None


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.sampled_from([0.0, 1.0, 2.0, 3.0])), min_size=2, max_size=30
    )
)
def test_interval_stays_within_shares(entries):
    """For any shares and weights the interval lies in [0, 1] and is ordered."""
    weights = np.array([[w] for _, w in entries])
    values = np.array([[s * w] for s, w in entries])
    found = interval_of_ratio(values, weights)
    if found is not None:
        assert -1e-9 <= found.low <= found.high <= 1 + 1e-9
