"""Intervals and tests over seeds: against published values, other tests, and simulations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import permutation_test, t, ttest_1samp

from enginehouse.statistics.paired import exact_mcnemar
from enginehouse.statistics.seeds import (
    RANDOM_SIGN_FLIP,
    SIGN_FLIP,
    compare_means,
    detectable_by_t,
    interval_of_means,
    sign_flip_test,
)

ROUNDS = 400
FREE = [(None, None)]
# Differences in height of 15 pairs of plants, crossed - selfed, in eighths of an inch: Darwin's
# data, for which Fisher gives p (Design of Experiments, section 21): 1,726 of 32,768 ways.
DARWIN = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48], dtype=float)


def interval(values, *, bounds=FREE[0]):
    """The interval of a plain mean, one match per seed."""
    column = np.asarray(values, dtype=float)[:, None]
    return interval_of_means(column, np.ones_like(column), bounds=[bounds])[0]


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [6, 12, 40])
@pytest.mark.parametrize("kind", ["normal", "skewed", "shares"])
def test_intervals_cover_the_mean(seeds, kind):
    """Close to 95 % of the time, also for few seeds, where plain percentiles cover less."""
    rng = np.random.default_rng(7)
    draw, mean = {
        "normal": (lambda: rng.normal(1, 2, seeds), 1.0),
        "skewed": (lambda: rng.exponential(1, seeds), 1.0),
        "shares": (lambda: rng.binomial(10, 0.6, seeds) / 10, 0.6),
    }[kind]
    covered = 0
    for _ in range(ROUNDS):
        found = interval(draw())
        covered += found is not None and found.low <= mean <= found.high
    assert covered / ROUNDS >= (0.86 if kind == "skewed" else 0.92)


def test_a_seeds_matches_are_drawn_together():
    """Ten copies of every match tell nothing more than one."""
    values = np.random.default_rng(1).random((20, 1))
    once = interval_of_means(values, np.ones_like(values), bounds=FREE)
    copied = interval_of_means(10 * values, np.full_like(values, 10), bounds=FREE)
    assert copied[0].low == pytest.approx(once[0].low)
    assert copied[0].high == pytest.approx(once[0].high)


def test_the_interval_of_many_seeds_is_that_of_the_t_distribution():
    """Normal values, where the right answer is known."""
    values = np.random.default_rng(2).normal(0, 1, 2000)
    half = t.ppf(0.975, 1999) * values.std(ddof=1) / np.sqrt(2000)
    found = interval(values)
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_seeds_without_the_value_do_not_count():
    """A weight of 0: as if the seed were not there."""
    values, weights = np.zeros((9, 1)), np.zeros((9, 1))
    values[:4], weights[:4] = 1.0, 1.0
    values[0] = 2.0
    assert interval_of_means(values, weights, bounds=FREE) == [None], "four seeds are too few"


def test_values_that_do_not_vary():
    """At a bound, Wilson's interval; elsewhere nothing can be said."""
    found = interval([1.0] * 10, bounds=(0.0, 1.0))
    assert found.method == "wilson by seed"
    assert (round(found.low, 3), found.high) == (0.722, 1.0)
    assert interval([0.5] * 10, bounds=(0.0, 1.0)) is None
    assert interval([3.0] * 10, bounds=(1.0, None)) is None


def test_sign_flips_give_fishers_p_for_darwins_plants():
    """1,726 of the 2¹⁵ ways to flip are at least as extreme."""
    assert sign_flip_test(DARWIN) == 1726 / 2**15
    assert compare_means(np.zeros(15), DARWIN).method == SIGN_FLIP


def test_sign_flips_agree_with_scipy():
    """Its permutation test of one sample, all permutations."""
    differences = np.random.default_rng(3).normal(0.5, 1, 11)
    expected = permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert sign_flip_test(differences) == pytest.approx(expected)


def test_random_flips_agree_with_all_of_them():
    """Beyond 16 seeds that differ: within the noise of 19,999 flips; zeros change nothing."""
    rng = np.random.default_rng(4)
    differences = rng.integers(-3, 5, 18).astype(float)
    differences[differences == 0] = 1
    signs = 2 * (np.arange(2**18)[:, None] >> np.arange(18) & 1) - 1
    exact = (np.abs(signs @ np.abs(differences)) >= abs(differences.sum())).mean()
    found = compare_means(np.zeros(30), np.concatenate([differences, np.zeros(12)]))
    assert found.method == RANDOM_SIGN_FLIP
    assert found.p_value == pytest.approx(exact, abs=4 * np.sqrt(exact / 20_000))


@pytest.mark.parametrize(("fewer", "more"), [(0, 6), (3, 11), (5, 5)])
def test_sign_flips_of_shares_are_mcnemars_test(fewer, more):
    """Of differences that are -1, 0 or 1."""
    differences = np.array([-1.0] * fewer + [1.0] * more + [0.0] * 7)
    assert sign_flip_test(differences) == pytest.approx(exact_mcnemar(fewer, more))


def test_the_test_holds_its_level():
    """Without a difference, at most 5 % of tests reject (and not far fewer)."""
    rng = np.random.default_rng(5)
    rejected = sum(sign_flip_test(rng.exponential(1, 12) * rng.choice([-1, 1], 12)) <= 0.05
                   for _ in range(ROUNDS))  # fmt: skip
    assert 0.02 <= rejected / ROUNDS <= 0.075


def test_detectable_difference_published_value():
    """An effect of dz = 0.5 needs 34 pairs for a power of 0.8 (G*Power: 0.8078)."""
    assert detectable_by_t(1.0, 34, power=0.8077775) == pytest.approx(0.5, abs=1e-4)
    assert detectable_by_t(1.0, 34) < 0.5 < detectable_by_t(1.0, 33)


def test_the_detectable_difference_is_found_as_often_as_stated():
    """Four times in five, by the t-test and by the flips."""
    rng = np.random.default_rng(6)
    effect = detectable_by_t(2.0, 12)
    drawn = [rng.normal(effect, 2.0, 12) for _ in range(ROUNDS)]
    by_t = np.mean([ttest_1samp(d, 0).pvalue <= 0.05 for d in drawn])
    by_flips = np.mean([sign_flip_test(d) <= 0.05 for d in drawn])
    assert by_t == pytest.approx(0.8, abs=0.06)
    assert by_flips == pytest.approx(0.8, abs=0.06)


def test_too_little_to_compare():
    """Five seeds, or no difference at all."""
    few = compare_means(np.zeros(5), np.ones(5))
    assert few.p_value is None
    assert few.difference == 1
    assert few.method.startswith("none: fewer than 6")
    same = compare_means(np.ones(9), np.ones(9))
    assert (same.p_value, same.interval, same.detectable) == (None, None, None)


def test_differences_that_are_equal_but_for_rounding():
    """A p-value, and neither an interval without width nor an effect of 10⁻¹⁵."""
    first = np.full(12, 0.1) + np.array([0.2, 0.3] * 6)
    always = compare_means(first, first + 0.1)
    assert always.p_value == pytest.approx(2 / 2**12)
    assert (always.interval, always.detectable) == (None, None)
    never = compare_means(np.full(12, 0.1 + 0.2), np.full(12, 0.3))
    assert never.method == "none: no seed differs"
    assert never.difference == 0


def test_the_same_seed_gives_the_same():
    """Intervals and random tests can be repeated."""
    first, second = np.random.default_rng(8).normal(0, 1, (2, 50))
    assert compare_means(first, second) == compare_means(first, second)
