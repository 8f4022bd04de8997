from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm

from enginehouse.statistics.detectable import detectable_by_mcnemar, power_of_mcnemar
from enginehouse.statistics.paired import compare_paired, exact_mcnemar


def connor(n, discordance, difference):
    """Power of McNemar's test by the normal approximation: Connor (1987)."""
    spread = math.sqrt(discordance - difference**2)
    return norm.cdf((math.sqrt(n) * difference - norm.ppf(0.975) * math.sqrt(discordance)) / spread)


@pytest.mark.parametrize(
    ("n", "discordance", "difference"), [(8, 0.9, 0.8), (20, 0.4, 0.3), (30, 1.0, 0.5)]
)
def test_power_by_enumeration(n, discordance, difference):
    """The power is the sum over every table that scipy's test rejects."""
    share = (1 + difference / discordance) / 2
    total = sum(
        binom.pmf(m, n, discordance) * binom.pmf(k, m, share)
        for m in range(1, n + 1)
        for k in range(m + 1)
        if binomtest(k, m).pvalue <= 0.05
    )
    assert power_of_mcnemar(n, discordance, difference) == pytest.approx(total, rel=1e-9)


def test_power_without_a_difference_is_at_most_the_level():
    """The exact test never rejects equal systems more often than it says."""
    for n in (5, 20, 100, 1000):
        assert power_of_mcnemar(n, 0.3, 0.0) <= 0.05
    assert power_of_mcnemar(100, 0.0, 0.0) == 0


@pytest.mark.parametrize(("n", "discordance"), [(1000, 0.2), (20_000, 0.1), (100_000, 0.3)])
def test_many_pairs_agree_with_the_normal_approximation(n, discordance):
    """What is detectable has Connor's power of 80 %, within 3 points."""
    found = detectable_by_mcnemar(n, discordance)
    assert connor(n, discordance, found) == pytest.approx(0.8, abs=0.03)


def test_no_discordance_does_not_mean_that_everything_would_be_seen():
    """Without discordant pairs the effect itself must make at least six: 7.8 points of 100."""
    found = detectable_by_mcnemar(100, 0.0)
    assert 0.06 < found < 0.09
    assert power_of_mcnemar(100, found, found) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_five_pairs_can_show_nothing(n):
    """Even if all five went one way, p would be 0.0625: no effect is detectable."""
    assert detectable_by_mcnemar(n, 0.5) is None
    assert exact_mcnemar(0, 5) > 0.05 >= exact_mcnemar(0, 6)
    assert detectable_by_mcnemar(6, 0.5) is not None


def test_more_pairs_show_less():
    """The detectable effect falls with the number of pairs and rises with the discordance."""
    by_size = [detectable_by_mcnemar(n, 0.2) for n in (10, 30, 100, 300, 1000, 3000)]
    assert by_size == sorted(by_size, reverse=True)
    by_discordance = [detectable_by_mcnemar(500, share) for share in (0.0, 0.05, 0.2, 0.5, 1.0)]
    assert by_discordance == sorted(by_discordance)


def test_a_discordance_that_is_no_share_is_refused():
    """A count in the place of a share is a caller's error."""
    with pytest.raises(ValueError, match="share"):
        detectable_by_mcnemar(100, 20)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "discordance"), [(60, 0.3), (200, 0.1), (1000, 0.2)])
def test_a_detectable_effect_is_found_four_times_in_five(n, discordance):
    """Simulated: single pairs that differ by it get p ≤ 0.05 in 80 % of 3,000 comparisons."""
    effect = detectable_by_mcnemar(n, discordance)
    spread = max(discordance, effect)
    shares = [(spread - effect) / 2, (spread + effect) / 2, 1 - spread]
    tables = np.random.default_rng(n).multinomial(n, shares, size=3000)
    found = np.mean([exact_mcnemar(int(b), int(c)) <= 0.05 for b, c, _ in tables])
    assert found == pytest.approx(0.8, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(("items", "differing"), [(100, 0.3), (400, 0.1), (400, 0.5)])
def test_a_detectable_effect_of_repeats_is_found_four_times_in_five(items, differing):
    """The same of four samples per item, which differ by halves: 75 to 87 % of 400 comparisons."""
    generator = np.random.default_rng(items)

    def compared(effect):
        sign = np.where(generator.random(items) < differing, 1, 0)
        sign *= np.where(generator.random(items) < (1 + 2 * effect / differing) / 2, 1, -1)
        values = np.zeros((2, items, 4))
        values[0, sign < 0, :2] = values[1, sign > 0, :2] = 1
        return compare_paired(values, np.ones_like(values))

    effect = float(np.median([compared(0.0).detectable for _ in range(20)]))
    found = np.mean([compared(effect).p_value <= 0.05 for _ in range(400)])
    assert 0.75 <= found <= 0.87
