"""Strengths of players from who beat whom."""

from __future__ import annotations

import math

import numpy as np

from enginehouse.statistics.intervals import Floats, Interval, resample_sums
from enginehouse.statistics.seeds import BOOTSTRAP, LEAST_FOR_INTERVAL

ELO = 400 / math.log(10)
"""Points of the Elo scale for a log-odds of 1: 400 points are odds of 10 to 1."""
_RESAMPLES = 1000
_MOST_STEPS = 100
_LONGEST_STEP = 2.0  # log-odds
_TOLERANCE = 1e-9  # log-odds


def bradley_terry(wins: Floats, *, draws_with_average: float = 1.0) -> Floats:
    """Log-odds strengths, mean 0: (…, players, players) → (…, players).

    wins[…, i, j] is how often i beat j, ties counting half for both. P(i beats j) is
    1 / (1 + exp(s_j - s_i)): R. A. Bradley, M. E. Terry, Biometrika 39 (1952) 324-345. Each player
    is also given `draws_with_average` ties with a player of strength 0, which keeps the strengths
    finite for a player that never lost (a prior, as F. Caron, A. Doucet, J. Comput. Graph. Stat. 21
    (2012) 174-196). Newton's method on the concave log-likelihood.
    """
    players = wins.shape[-1]
    games = wins + np.swapaxes(wins, -1, -2)
    diagonal = np.arange(players)
    strengths = np.zeros(wins.shape[:-1])
    for _ in range(_MOST_STEPS):
        expected = _logistic(strengths[..., :, None] - strengths[..., None, :])
        average = _logistic(strengths)
        gradient = (wins - games * expected).sum(axis=-1) + draws_with_average * (0.5 - average)
        information = -games * expected * (1 - expected)
        own = -information.sum(axis=-1) + draws_with_average * average * (1 - average)
        information[..., diagonal, diagonal] += own
        if not draws_with_average:  # strengths are determined up to a constant, which is fixed so
            information = information + 1.0
        step = np.linalg.solve(information, gradient[..., None])[..., 0]
        longest = np.abs(step).max(axis=-1, keepdims=True)
        strengths = strengths + step * np.minimum(1.0, _LONGEST_STEP / np.maximum(longest, 1e-300))
        if longest.max() < _TOLERANCE:
            break
    centred: Floats = strengths - strengths.mean(axis=-1, keepdims=True)
    return centred


def intervals_of_strengths(wins: Floats, *, seed: int = 0) -> list[Interval | None]:
    """The 95 % interval of every strength, resampling seeds: (seeds, players, players).

    The percentile bootstrap; None with fewer than 5 seeds, and for a strength that is the same in
    all resamples. The same `seed` gives the same.
    """
    seeds, players, _ = wins.shape
    if seeds < LEAST_FOR_INTERVAL:
        return [None] * players
    sums = resample_sums(wins.reshape(seeds, -1), resamples=_RESAMPLES, seed=seed)
    drawn = bradley_terry(sums.reshape(-1, players, players))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return [
        Interval(low=float(a), high=float(b), confidence=0.95, method=BOOTSTRAP)
        if b - a > _TOLERANCE
        else None
        for a, b in zip(low, high, strict=True)
    ]


def all_met(wins: Floats) -> bool:
    """Whether every player can be compared with every other, directly or through others.

    `wins` has shape (players, players), as for `bradley_terry`.
    """
    games = wins + wins.T > 0
    reached = np.eye(len(games), dtype=bool)[0]
    for _ in range(len(games)):
        reached = reached | games[reached].any(axis=0)
    return bool(reached.all())


def _logistic(x: Floats) -> Floats:
    probability: Floats = 1 / (1 + np.exp(-x))
    return probability
