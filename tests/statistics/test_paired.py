from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from enginehouse.statistics.detectable import detectable_by_mcnemar
from enginehouse.statistics.paired import (
    BOOTSTRAP,
    bonett_price,
    compare_paired,
    compare_with_margin,
    exact_mcnemar,
    paired_bootstrap,
    typical_difference,
)

ROUNDS = 400


def pairs(*, only_first=0, only_second=0, both=0, neither=0):
    """Values of single 0-or-1 pairs, shape (2, items, 1), and their weights."""
    kinds = [(1, 0)] * only_first + [(0, 1)] * only_second + [(1, 1)] * both + [(0, 0)] * neither
    values = np.array(kinds, dtype=float).T[:, :, None]
    return values, np.ones_like(values)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_agrees_with_scipy(only_first, only_second):
    """The p-value is scipy's two-sided binomial test of the discordant pairs against one half."""
    total = only_first + only_second
    expected = binomtest(only_first, total).pvalue if total else 1.0
    assert exact_mcnemar(only_first, only_second) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("one", "other"), [(0, 0), (0, 5), (0, 6), (3, 11), (40, 60), (9, 9)])
def test_mcnemar_agrees_with_whole_numbers(one, other):
    """The same from binomial coefficients in exact arithmetic."""
    n = one + other
    tail = sum(math.comb(n, k) for k in range(min(one, other) + 1))
    assert exact_mcnemar(one, other) == pytest.approx(min(1.0, 2 * tail / 2**n), rel=1e-12)


def test_bonett_price_published_value():
    """7 against 1 of 21 pairs: -0.508 to -0.013.

    Airway hyper-responsiveness, Bentur et al. (2009), as in Fagerland, Lydersen, Laake,
    "Recommended tests and confidence intervals for paired binomial proportions" (2014).
    """
    found = bonett_price(7, 1, 21)
    assert (round(found.low, 3), round(found.high, 3)) == (-0.508, -0.013)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_bonett_price_stays_inside_and_mirrors(only_first, only_second, same):
    """-1 ≤ low < high ≤ 1, the difference is inside, and swapping the two mirrors it."""
    n = only_first + only_second + same
    if not n:
        return
    found, mirrored = bonett_price(only_first, only_second, n), bonett_price(
        only_second, only_first, n
    )  # fmt: skip
    assert -1 <= found.low < found.high <= 1
    assert found.low <= (only_second - only_first) / n <= found.high
    assert found.low == pytest.approx(-mirrored.high)


def test_single_pairs_use_mcnemar():
    """Scores, difference, counts, test, interval and detectable effect of one 2 x 2 table."""
    values, weights = pairs(only_first=4, only_second=16, both=50, neither=30)
    found = compare_paired(values, weights)
    assert (found.pairs, found.only_first, found.only_second) == (100, 4, 16)
    assert (found.first, found.second) == (0.54, 0.66)
    assert found.difference == pytest.approx(0.12)
    assert found.method == "exact McNemar"
    assert found.p_value == pytest.approx(binomtest(4, 20).pvalue)
    assert found.interval == bonett_price(4, 16, 100)
    assert found.detectable == detectable_by_mcnemar(100, 0.2)


def test_entries_that_one_side_lacks_are_no_pairs():
    """A weight of 0 on either side takes the entry out of both scores."""
    values, weights = pairs(only_first=3, only_second=1, both=4)
    weights[0, 0] = 0  # one of those right in the first only
    weights[1, 7] = 0  # one that is right in both
    found = compare_paired(values, weights)
    assert (found.pairs, found.only_first, found.only_second) == (6, 2, 1)
    assert (found.first, found.second) == (5 / 6, 4 / 6)
    assert compare_paired(values, np.zeros_like(weights)) is None


def test_one_valid_repeat_per_item_is_a_single_pair():
    """With all repeats but one failed there is nothing to cluster: McNemar again."""
    values, weights = np.ones((2, 8, 3)), np.zeros((2, 8, 3))
    weights[:, range(8), [0, 1, 2, 0, 1, 2, 0, 1]] = 1
    assert compare_paired(values, weights).method == "exact McNemar"


def repeated(items, repeats, *, seed=0, gain=0.0):
    """Two systems' 0-or-1 answers, more often right by `gain` in the second."""
    generator = np.random.default_rng(seed)
    share = generator.uniform(0, 1 - gain, (items, 1))
    values = np.stack(
        [generator.random((items, repeats)) < share + shift for shift in (0.0, gain)]
    ).astype(float)
    return values, np.ones_like(values)


def test_repeats_are_clustered_by_item():
    """Identical repeats say no more than one of them does; McNemar over samples would be surer."""
    values, weights = pairs(only_first=3, only_second=12, both=25, neither=20)
    many = compare_paired(np.repeat(values, 8, axis=2), np.repeat(weights, 8, axis=2))
    once = compare_paired(values, weights)
    assert many.method == BOOTSTRAP
    assert many.pairs == 8 * once.pairs
    assert many.p_value == pytest.approx(once.p_value, abs=0.02)
    assert many.interval.low == pytest.approx(once.interval.low, abs=0.02)
    assert many.interval.high == pytest.approx(once.interval.high, abs=0.02)
    assert many.detectable == pytest.approx(once.detectable)
    assert many.p_value > 100 * exact_mcnemar(8 * 3, 8 * 12)


def test_bootstrap_agrees_with_the_normal_approximation_on_many_items():
    """Of 2,000 items, the interval is the t-interval of the items' mean differences within 5 %."""
    values, weights = repeated(2000, 4, gain=0.02)
    found = compare_paired(values, weights)
    differences = (values[1] - values[0]).mean(axis=1)
    half = 1.96 * differences.std(ddof=1) / math.sqrt(2000)
    assert found.interval.high - found.interval.low == pytest.approx(2 * half, rel=0.05)
    assert found.difference == pytest.approx(differences.mean())


def test_bootstrap_gives_the_same_every_time():
    """No run of the same comparison differs from another."""
    values, weights = repeated(200, 3, gain=0.1)
    assert compare_paired(values, weights) == compare_paired(values, weights)


@pytest.mark.parametrize("seed", range(12))
def test_interval_and_p_value_never_contradict_each_other(seed):
    """0 is outside the 95 % interval exactly if p < 0.05 (but for the resamples' grain)."""
    found = compare_paired(*repeated(30, 4, seed=seed, gain=0.02 * seed))
    outside = not found.interval.low <= 0 <= found.interval.high
    assert outside == (found.p_value < 0.05) or found.p_value == pytest.approx(0.05, abs=0.002)


def test_swapping_the_systems_mirrors_the_difference():
    """B against A is A against B with the sign turned round."""
    values, weights = repeated(100, 4, gain=0.1)
    one, other = compare_paired(values, weights), compare_paired(values[::-1], weights)
    assert one.difference == pytest.approx(-other.difference)
    assert one.interval.low == pytest.approx(-other.interval.high, abs=0.01)
    assert one.p_value == pytest.approx(other.p_value, abs=0.01)


def test_identical_answers_keep_an_interval_with_width():
    """No item differs: p = 1, and as wide an interval and effect as single pairs have, about."""
    values, weights = repeated(100, 4)
    values[1] = values[0]
    found = compare_paired(values, weights)
    once = compare_paired(*pairs(both=60, neither=40))
    assert (found.difference, found.p_value) == (0, 1)
    assert found.interval.high == pytest.approx(once.interval.high, abs=0.01)
    assert found.detectable == pytest.approx(once.detectable)


@pytest.mark.parametrize("items", [1, 5])
def test_too_few_items_are_said_to_be_too_few(items):
    """With fewer than six items no answers could show a difference; no p-value pretends."""
    values, weights = np.zeros((2, items, 4)), np.ones((2, items, 4))
    values[1] = 1
    found = compare_paired(values, weights)
    assert (found.interval, found.p_value, found.detectable) == (None, None, None)
    assert found.method == "none: fewer than 6 items"
    assert compare_paired(values[:, :, :1], weights[:, :, :1]).p_value >= 0.05


def test_weighted_metrics_are_ratios():
    """Σ value / Σ weight on both sides, as in the report, whatever the weights."""
    generator = np.random.default_rng(2)
    weights = np.repeat(generator.integers(1, 4, (1, 300, 1)), 2, axis=0).astype(float)
    values = np.floor(generator.random((2, 300, 1)) * (weights + 1))
    found = compare_paired(values, weights)
    assert found.first == pytest.approx(values[0].sum() / weights[0].sum())
    assert found.difference == pytest.approx((values[1] - values[0]).sum() / weights[0].sum())
    assert found.method == BOOTSTRAP
    assert found.interval.low < found.difference < found.interval.high
    assert (found.only_first, found.only_second) == (None, None)


def test_a_metric_that_no_item_differs_in():
    """Equal values that are no shares have no scale for a width: none is made up."""
    values = np.full((2, 50, 1), 3.5)
    found = compare_paired(values, np.ones_like(values))
    assert (found.difference, found.interval, found.p_value) == (0, None, None)
    assert found.method == "none: no item differs"


def test_bootstrap_against_a_plain_loop():
    """The vectorised resampling is that of a loop that draws items one by one."""
    values, weights = repeated(25, 2, gain=0.15)
    sums, totals = values.sum(axis=2), weights.sum(axis=2)
    differences = (sums[1] - sums[0]) / 2
    typical = typical_difference(differences)
    found = paired_bootstrap(sums, totals, typical=typical)
    generator = np.random.default_rng(9)
    extended = [*differences, typical, -typical]
    drawn = np.array([generator.choice(extended, 27).mean().round(9) for _ in range(10_000)])
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.interval.low == pytest.approx(low, abs=0.01)
    assert found.interval.high == pytest.approx(high, abs=0.01)
    beyond = min(np.mean(drawn <= 0), np.mean(drawn >= 0))
    assert found.p_value == pytest.approx(2 * beyond, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(("items", "repeats"), [(12, 4), (50, 4), (200, 2)])
def test_false_alarms_are_at_most_one_in_twenty(items, repeats):
    """Two equal systems differ at level 0.05 in about 5 % of simulations, never more."""
    generator = np.random.default_rng(items)
    alarms = 0
    for _ in range(ROUNDS):
        share = generator.beta(0.4, 0.4, (items, 1))
        values = (generator.random((2, items, repeats)) < share).astype(float)
        alarms += compare_paired(values, np.ones_like(values)).p_value <= 0.05
    assert 0.01 <= alarms / ROUNDS <= 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / ROUNDS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("differing", "up", "least"), [(0.03, 1.0, 0.92), (0.08, 0.8, 0.935), (0.15, 0.5, 0.935)]
)
def test_bootstrap_covers_though_few_items_differ(differing, up, least):
    """Where 3 to 15 of 100 items differ, by parts: 95 % intervals hold the truth that often."""
    generator = np.random.default_rng(4)
    truth = differing * (2 * up - 1) * np.mean([0.25, 0.5, 0.75, 1])
    covered = 0
    for _ in range(ROUNDS):
        size = generator.choice([1, 2, 3, 4], 100)
        sign = np.where(generator.random(100) < differing, 1, 0)
        sign *= np.where(generator.random(100) < up, 1, -1)
        values = (np.arange(4) < size[:, None])[None] * np.stack([sign < 0, sign > 0])[:, :, None]
        found = compare_paired(values.astype(float), np.ones((2, 100, 4)))
        covered += found.interval.low <= truth <= found.interval.high
    assert covered / ROUNDS >= least


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "worse", "better"), [(30, 0.05, 0.1), (100, 0.02, 0.1), (400, 0.1, 0.1)]
)
def test_bonett_price_covers(n, worse, better):
    """95 % intervals of single pairs hold the true difference in 94 % of simulations or more."""
    generator = np.random.default_rng(n)
    counts = generator.multinomial(n, [worse, better, 1 - worse - better], size=4000)
    truth = better - worse
    intervals = [bonett_price(int(b), int(c), n) for b, c, _ in counts]
    assert np.mean([i.low <= truth <= i.high for i in intervals]) >= 0.94


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("kind", ["single", "repeated"])
def test_margins_agree_with_intervals(kind, confidence):
    """A bound of the interval is the margin at which the one-sided p-value is its tail."""
    drawn = repeated(60, 3, gain=-0.1)
    values, weights = pairs(only_first=14, only_second=5, both=60) if kind == "single" else drawn
    interval = compare_paired(values, weights, confidence=confidence).interval
    tail = (1 - confidence) / 2
    assert interval.confidence == confidence
    low = compare_with_margin(values, weights, margin=-interval.low)
    high = compare_with_margin(values, weights, margin=-interval.high)
    assert low.not_worse == pytest.approx(tail, abs=0.01)
    assert high.worse == pytest.approx(tail, abs=0.01)
    assert low.worse > 0.8


def test_confidence_is_also_the_level_of_what_is_detectable():
    """The surer one wants to be, the larger a difference must be to be found."""
    one, other = (
        compare_paired(*pairs(only_first=8, only_second=8, both=84), confidence=c).detectable
        for c in (0.9, 0.99)
    )
    assert one < other


def test_margins_without_an_interval():
    """Few items, or none that differs on a scale that is not known: nothing can be said."""
    ones = np.ones((2, 5, 2))
    assert compare_with_margin(ones, ones, margin=0.1) is None
    alike = np.full((2, 50, 1), 3.5)
    assert compare_with_margin(alike, np.ones_like(alike), margin=0.1) is None
    assert compare_with_margin(ones, np.zeros_like(ones), margin=0.1) is None


@pytest.mark.slow
@pytest.mark.parametrize("repeats", [1, 3])
def test_margins_are_missed_rarely(repeats):
    """Truly worse by just the margin: each side is claimed in about 2.5 % of simulations."""
    generator = np.random.default_rng(repeats)
    margin, worse, enough = 0.05, 0, 0
    rounds = 4 * ROUNDS if repeats == 1 else ROUNDS
    for _ in range(rounds):
        share = generator.uniform(0.2, 0.8, (150, 1))
        shares = np.stack([share, share - margin])
        values = (generator.random((2, 150, repeats)) < shares).astype(float)
        found = compare_with_margin(values, np.ones_like(values), margin=margin)
        worse += found.worse <= 0.025
        enough += found.not_worse <= 0.025
    limit = 0.025 + 2.5 * math.sqrt(0.025 * 0.975 / rounds)
    assert worse / rounds <= limit
    assert enough / rounds <= limit
