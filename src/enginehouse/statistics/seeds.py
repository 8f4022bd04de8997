"""Experiments whose matches share seeds: the seed is the unit that varies, never a round or a vote.

Arrays have one row per seed. A value is the sum over the seed's matches, its weight their number;
0 where no match has the value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import nctdtrinc, ndtr, stdtrit

from enginehouse.statistics.intervals import Floats, Interval, resample_sums, wilson
from enginehouse.statistics.paired import PairedResult

LEAST_FOR_INTERVAL = 5
LEAST_FOR_TEST = 6  # with five, even differences that all agree have p = 2 / 2⁵ > 0.05
BOOTSTRAP = "bootstrap by seed"
SIGN_FLIP = "exact sign-flip test"
RANDOM_SIGN_FLIP = "sign-flip test, 19,999 random flips"
TOO_FEW = f"none: fewer than {LEAST_FOR_TEST} seeds"
NO_DIFFERENCE = "none: no seed differs"
_MOST_RESAMPLES, _LEAST_RESAMPLES = 4000, 1000
_MOST_EXACT = 16  # seeds that differ: 2¹⁶ ways to flip
_FLIPS = 19_999
_ROUNDING = 1e-9  # relative to the largest value; means of several matches are not exact

Bounds = tuple[float | None, float | None]


def interval_of_means(
    values: Floats, weights: Floats, *, bounds: Sequence[Bounds], seed: int = 0
) -> list[Interval | None]:
    """The 95 % interval of Σ value / Σ weight for each column; both arrays are (seeds, columns).

    The expanded percentile bootstrap over whole seeds: T. C. Hesterberg, "What teachers should
    know about the bootstrap", Am. Stat. 69 (2015) 371-386, section 3.3. Percentiles are taken
    further out, at Φ(± sqrt(n / (n - 1)) t), which makes up for the bootstrap's being too narrow
    for few seeds.

    A column without variation has no such interval. If it lies at one of its finite `bounds`,
    (low, high), it has Wilson's with a seed as one trial; otherwise None. None also with fewer
    than 5 seeds. The same `seed` gives the same intervals.
    """
    counted = weights > 0
    seeds, columns = values.shape
    # The more seeds, the closer to normal, and the longer each resample takes.
    resamples = max(_LEAST_RESAMPLES, min(_MOST_RESAMPLES, 1000 * _MOST_RESAMPLES // seeds))
    sums = resample_sums(np.concatenate([values, weights], axis=1), resamples=resamples, seed=seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = sums[:, :columns] / sums[:, columns:]
    intervals: list[Interval | None] = []
    for column, (low, high) in enumerate(bounds):
        rows = counted[:, column]
        means = values[rows, column] / weights[rows, column]
        if len(means) < LEAST_FOR_INTERVAL:
            intervals.append(None)
        elif np.ptp(means) > _ROUNDING * np.abs(means).max():
            intervals.append(_expanded(ratios[:, column], len(means)))
        elif low is not None and high is not None and means[0] in (low, high):
            intervals.append(_at_bound(low, high, at_high=means[0] == high, seeds=len(means)))
        else:
            intervals.append(None)
    return intervals


def compare_means(first: Floats, second: Floats, *, seed: int = 0) -> PairedResult:
    """Two means of the same seeds, arrays of shape (seeds,): second - first.

    The test is `sign_flip_test`, the interval that of `interval_of_means`, the least detectable
    difference `detectable_by_t`. Without enough seeds, or if no seed differs, they are None, and
    `method` says why; if all differ by the same, there is a p-value only.
    """
    differences = second - first
    rounding = _ROUNDING * max(np.abs(first).max(initial=0), np.abs(second).max(initial=0))
    differences[np.abs(differences) <= rounding] = 0.0
    interval = p_value = detectable = None
    if len(differences) < LEAST_FOR_TEST:
        method = TOO_FEW
    elif not differences.any():
        method = NO_DIFFERENCE
    else:
        p_value = sign_flip_test(differences, seed=seed)
        method = SIGN_FLIP if np.count_nonzero(differences) <= _MOST_EXACT else RANDOM_SIGN_FLIP
        if np.ptp(differences) > rounding:
            detectable = detectable_by_t(float(differences.std(ddof=1)), len(differences))
        (interval,) = interval_of_means(
            differences[:, None],
            np.ones((len(differences), 1)),
            bounds=[(None, None)],
            seed=seed,
        )
    return PairedResult(
        pairs=len(differences),
        first=float(first.mean()),
        second=float(second.mean()),
        difference=float(differences.mean()),
        interval=interval,
        p_value=p_value,
        method=method,
        detectable=detectable,
        only_first=None,
        only_second=None,
    )


def sign_flip_test(differences: Floats, *, seed: int = 0) -> float:
    """Two-sided p-value of the mean difference, if each difference's sign were a fair coin.

    R. A. Fisher, "The Design of Experiments" (1935), section 21. Exact for up to 16 differences
    that are not 0 (of differences of 0-or-1 values it is the exact McNemar test). Beyond, 19,999
    random flips give (b + 1) / 20,000 with b of them at least as extreme: B. Phipson, G. K. Smyth,
    Stat. Appl. Genet. Mol. Biol. 9 (2010) 39. The same `seed` gives the same.
    """
    some = differences[differences != 0]
    if not len(some):
        return 1.0
    scaled = some / np.abs(some).max()
    observed = abs(scaled.sum()) - _ROUNDING * len(some)
    sizes = np.abs(scaled)
    if len(some) <= _MOST_EXACT:
        flips = np.arange(2 ** len(some))[:, None] >> np.arange(len(some)) & 1
        return float((np.abs((2 * flips - 1) @ sizes) >= observed).mean())
    # Equal differences are flipped together: how many become positive is binomial.
    values, counts = np.unique(np.round(sizes, 9), return_counts=True)
    positive = np.random.default_rng(seed).binomial(counts, 0.5, size=(_FLIPS, len(counts)))
    extreme = np.abs((2 * positive - counts) @ values) >= observed
    return float((extreme.sum() + 1) / (_FLIPS + 1))


def detectable_by_t(
    deviation: float, seeds: int, *, alpha: float = 0.05, power: float = 0.8
) -> float:
    """The least |mean difference| that a two-sided paired t-test finds with probability `power`.

    `deviation` is the standard deviation of the differences. From the noncentral t distribution,
    J. Cohen, "Statistical Power Analysis for the Behavioral Sciences" (1988), chapter 2; the
    chance of rejecting in the wrong direction (below 0.001 here) is left out.
    """
    critical = stdtrit(seeds - 1, 1 - alpha / 2)
    return float(nctdtrinc(seeds - 1, 1 - power, critical) * deviation / math.sqrt(seeds))


def _expanded(ratios: Floats, seeds: int) -> Interval:
    t = stdtrit(seeds - 1, 0.975)
    tail = float(ndtr(-math.sqrt(seeds / (seeds - 1)) * t))
    low, high = np.nanquantile(ratios, [tail, 1 - tail])
    return Interval(low=float(low), high=float(high), confidence=0.95, method=BOOTSTRAP)


def _at_bound(low: float, high: float, *, at_high: bool, seeds: int) -> Interval | None:
    share = wilson(seeds if at_high else 0, seeds)
    if share is None:
        return None
    span = high - low
    return Interval(
        low=low + span * share.low,
        high=low + span * share.high,
        confidence=0.95,
        method="wilson by seed",
    )
