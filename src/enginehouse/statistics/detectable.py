"""The smallest difference that a comparison would find: "no difference" or "too few items"."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, gammaln

from enginehouse.statistics.intervals import Floats

Integers = NDArray[np.int_]

_PRECISION = 0.005  # of the figure itself


def detectable_by_mcnemar(
    pairs: int, discordance: float, *, alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """Least |difference of two paired shares| that the exact McNemar test finds; None if none.

    It is found with probability `power` by one two-sided test at level `alpha`. `discordance` is
    the observed share of pairs that are right in one only. A difference cannot be larger than the
    discordance, so beyond the observed one every discordant pair is taken to go the same way. The
    power is the exact, unconditional one: the number m of discordant pairs is
    binomial(pairs, discordance), of which binomial(m, (1 + difference / discordance) / 2) go one
    way (S. W. Duffy, Biometrics 40 (1984) 1005-1015). The normal approximation of it, and what it
    tends to, is R. J. Connor, Biometrics 43 (1987) 207-211.
    """
    if not 0 <= discordance <= 1:
        raise ValueError(f"discordance {discordance} is not a share")
    low, high = 0.0, discordance or 1 / max(pairs, 1)
    observed = _Discordant(pairs, discordance, alpha=alpha)
    found = observed.power(discordance) >= power
    while not found:
        if high >= 1:
            return None
        low, high = high, min(1.0, 2 * high)
        found = power_of_mcnemar(pairs, high, high, alpha=alpha) >= power
    while high - low > _PRECISION * high:
        middle = (low + high) / 2
        if middle <= discordance:
            found = observed.power(middle) >= power
        else:
            found = power_of_mcnemar(pairs, middle, middle, alpha=alpha) >= power
        low, high = (low, middle) if found else (middle, high)
    return high


def power_of_mcnemar(
    pairs: int, discordance: float, difference: float, *, alpha: float = 0.05
) -> float:
    """Probability that the exact two-sided McNemar test rejects; see `detectable_by_mcnemar`."""
    return _Discordant(pairs, discordance, alpha=alpha).power(difference)


class _Discordant:
    """How many pairs are discordant, with what probability, and when the test then rejects."""

    def __init__(self, pairs: int, discordance: float, *, alpha: float) -> None:
        spread = 8 * math.sqrt(pairs * discordance * (1 - discordance)) + 8
        least = max(0, math.floor(pairs * discordance - spread))
        most = min(pairs, math.ceil(pairs * discordance + spread))
        m = np.arange(least, most + 1)
        critical = _critical(m, alpha)
        some = critical >= 0
        self._m, self._critical = m[some], critical[some]
        self._probability = _binomial(m, pairs, discordance)[some]
        self._discordance = discordance

    def power(self, difference: float) -> float:
        if not self._discordance:
            return 0.0
        share = (1 + difference / self._discordance) / 2
        k, m = self._critical, self._m
        return float((self._probability * (bdtr(k, m, share) + bdtr(k, m, 1 - share))).sum())


def _critical(m: Integers, alpha: float) -> Integers:
    """The most k with 2 * P(binomial(m, 1/2) ≤ k) ≤ alpha; -1 where there is none."""
    low, high = np.full(len(m), -1), m // 2
    while (high - low > 1).any():
        middle = (low + high) // 2
        rejects = (middle >= 0) & (2 * bdtr(np.maximum(middle, 0), m, 0.5) <= alpha)
        low, high = np.where(rejects, middle, low), np.where(rejects, high, middle)
    return low


def _binomial(k: Integers, trials: int, share: float) -> Floats:
    if share in (0.0, 1.0):
        return np.where(k == trials * share, 1.0, 0.0)
    ways = gammaln(trials + 1) - gammaln(k + 1) - gammaln(trials - k + 1)
    exponent = ways + k * math.log(share) + (trials - k) * math.log1p(-share)
    probability: Floats = np.exp(exponent)
    return probability
