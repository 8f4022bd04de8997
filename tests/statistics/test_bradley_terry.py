"""Ratings: against a published example, a general optimiser and a simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from enginehouse.statistics.bradley_terry import all_met, bradley_terry, intervals_of_strengths

# American League East 1987, wins of the row over the column, and the published estimates: A.
# Agresti, "Categorical Data Analysis" (2002), section 10.6. Milwaukee, Detroit, Toronto, New York,
# Boston, Cleveland, Baltimore.
BASEBALL = np.array([
    [0, 7, 9, 7, 7, 9, 11],
    [6, 0, 7, 5, 11, 9, 9],
    [4, 6, 0, 7, 7, 8, 12],
    [6, 8, 6, 0, 6, 7, 10],
    [6, 2, 6, 7, 0, 7, 12],
    [4, 4, 5, 6, 6, 0, 6],
    [2, 4, 1, 3, 1, 7, 0],
], dtype=float)  # fmt: skip
PUBLISHED = [1.58, 1.44, 1.29, 1.25, 1.11, 0.68, 0.0]


def test_published_strengths():
    """To the two decimals that are published, without the prior."""
    found = bradley_terry(BASEBALL, draws_with_average=0.0)
    assert found - found[-1] == pytest.approx(PUBLISHED, abs=0.0051)
    assert found.mean() == pytest.approx(0)


def test_a_general_optimiser_finds_the_same():
    """Of the penalised likelihood, as the docstring states it."""

    def loss(s):
        gain = -np.log1p(np.exp(s[None, :] - s[:, None]))
        return -(BASEBALL * gain).sum() + 0.5 * (np.log1p(np.exp(-s)) + np.log1p(np.exp(s))).sum()

    expected = minimize(loss, np.zeros(7), tol=1e-12).x
    found = bradley_terry(BASEBALL)
    assert found == pytest.approx(expected - expected.mean(), abs=1e-4)


def test_who_never_lost_has_a_finite_strength():
    """And more wins still mean a higher one."""
    few, many = (bradley_terry(np.array([[0.0, n], [0.0, 0.0]])) for n in (5, 5000))
    assert np.isfinite(many).all()
    assert 0 < few[0] < many[0]


def test_ties_are_half_wins():
    """A tie each is a win and a loss."""
    wins = np.array([[0, 3, 1], [1, 0, 4], [2, 0, 0]], dtype=float)
    tied = wins + np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]]) * 0.5
    split = wins + np.array([[0, 0.5, 0], [0.5, 0, 0], [0, 0, 0]])
    assert bradley_terry(tied) == pytest.approx(bradley_terry(split))
    assert bradley_terry(np.full((4, 4), 0.5)) == pytest.approx([0, 0, 0, 0])


def test_many_at_once_are_each_alone():
    """The resamples of a bootstrap."""
    stacked = bradley_terry(np.stack([BASEBALL, BASEBALL.T, 3 * BASEBALL]))
    assert stacked[0] == pytest.approx(bradley_terry(BASEBALL))
    assert stacked[1] == pytest.approx(-stacked[0])


@pytest.mark.slow
def test_intervals_cover_the_strengths():
    """At least nine in ten; the prior draws strengths together by a little."""
    rng = np.random.default_rng(9)
    true = np.array([0.6, 0.0, -0.6])
    first, second = np.triu_indices(3, 1)
    chance = 1 / (1 + np.exp(true[second] - true[first]))
    covered = []
    for _ in range(100):
        won = rng.random((60, 3)) < chance
        wins = np.zeros((60, 3, 3))
        wins[:, first, second], wins[:, second, first] = won, ~won
        covered += [
            i is not None and i.low <= s <= i.high
            for s, i in zip(true, intervals_of_strengths(wins), strict=True)
        ]
    assert 0.9 <= np.mean(covered) <= 0.99


def test_few_seeds_have_no_interval():
    """Below five."""
    assert intervals_of_strengths(np.ones((4, 3, 3))) == [None] * 3


def test_seeds_that_are_all_alike_have_no_interval():
    """Resampling them changes nothing."""
    assert intervals_of_strengths(np.tile(BASEBALL, (9, 1, 1))) == [None] * 7


def test_whether_all_can_be_compared():
    """Through others counts; two groups that never met do not."""
    chain = np.zeros((4, 4))
    chain[0, 1] = chain[2, 1] = 1
    assert not all_met(chain)
    chain[3, 2] = 1
    assert all_met(chain)
