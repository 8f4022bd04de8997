from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginehouse.statistics.pass_at_k import best_at_k, mean_at_k, pass_at_k


def of(n, c):
    """One item with c right answers of n."""
    return np.arange(n)[None] < c, np.ones((1, n), bool)


@given(st.integers(1, 60), st.data())
def test_pass_at_k_agrees_with_binomial_coefficients(n, data):
    """1 - C(n - c, k) / C(n, k), in whole numbers."""
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    expected = 1 - comb(n - c, k) / comb(n, k)
    assert pass_at_k(*of(n, c), k=k)[0] == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_of_many_samples_does_not_overflow():
    """10,000 samples, where the coefficients have no floating-point value."""
    exact = 1 - comb(9_900, 500) / comb(10_000, 500)
    assert pass_at_k(*of(10_000, 100), k=500)[0] == pytest.approx(exact, abs=1e-12)


@st.composite
def tables(draw):
    """Values in quarters and which are valid, shape (3, n)."""
    n = draw(st.integers(1, 7))
    cells = st.lists(st.integers(-4, 8), min_size=n, max_size=n)
    flags = st.lists(st.booleans(), min_size=n, max_size=n)
    values = np.array([draw(cells) for _ in range(3)]) / 4
    return values, np.array([draw(flags) for _ in range(3)])


@settings(max_examples=60)
@given(tables(), st.data())
def test_all_three_agree_with_every_subset(table, data):
    """Averages over all subsets of k valid samples; NaN where there are fewer."""
    values, valid = table
    k = data.draw(st.integers(1, values.shape[1]))
    found = (
        pass_at_k(values > 0.5, valid, k=k),
        best_at_k(values, valid, k=k),
        mean_at_k(values, valid, k=k),
    )
    for i in range(len(values)):
        kept = values[i][valid[i]]
        subsets = list(combinations(kept, k))
        if not subsets:
            assert np.isnan([row[i] for row in found]).all()
            continue
        assert found[0][i] == pytest.approx(np.mean([max(s) > 0.5 for s in subsets]))
        assert found[1][i] == pytest.approx(np.mean([max(s) for s in subsets]))
        assert found[2][i] == pytest.approx(kept[:k].mean())


@given(st.integers(1, 20), st.data())
def test_best_of_right_and_wrong_is_pass(n, data):
    """best@k of 0-or-1 values is pass@k; at k = 1 both are the share."""
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    correct, valid = of(n, c)
    assert best_at_k(correct.astype(float), valid, k=k) == pytest.approx(
        pass_at_k(correct, valid, k=k)
    )
    assert pass_at_k(correct, valid, k=1)[0] == pytest.approx(c / n)


def test_the_extremes_are_exact():
    """All right is 1 and none right is 0, to the last bit: an interval depends on it."""
    for n, k in ((7, 3), (10, 7), (64, 32)):
        valid = np.ones((1, n), bool)
        assert pass_at_k(valid, valid, k=k)[0] == 1.0
        assert pass_at_k(~valid, valid, k=k)[0] == 0.0
        assert best_at_k(np.full((1, n), 0.7), valid, k=k)[0] == 0.7


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_pass_at_k_is_unbiased(k):
    """Over 20,000 draws of 8 samples it averages to 1 - (1 - p)^k; the naive estimate does not."""
    valid = np.ones((20_000, 8), bool)
    correct = np.random.default_rng(k).random(valid.shape) < 0.3
    truth = 1 - 0.7**k
    assert pass_at_k(correct, valid, k=k).mean() == pytest.approx(truth, abs=0.01)
    if k == 4:
        naive = 1 - (1 - correct.mean(axis=1)) ** k
        assert abs(naive.mean() - truth) > 0.03


def test_mean_at_k_takes_the_first_valid_ones():
    """Failed samples are passed over, not counted as 0."""
    values = np.array([[1.0, 9.0, 0.0, 1.0, 1.0]])
    valid = np.array([[True, False, True, True, False]])
    assert mean_at_k(values, valid, k=2)[0] == 0.5
    assert mean_at_k(values, valid, k=3)[0] == pytest.approx(2 / 3)
    assert np.isnan(mean_at_k(values, valid, k=4)[0])
