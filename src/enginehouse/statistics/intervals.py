"""Confidence intervals of proportions and of ratios."""

from __future__ import annotations

import math
from statistics import NormalDist

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_DRAWS_AT_ONCE = 1 << 18


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """A two-sided confidence interval and how it was made."""

    low: float
    high: float
    confidence: float
    method: str


def wilson(successes: float, trials: float, *, confidence: float = 0.95) -> Interval | None:
    """Wilson's score interval of a proportion; None without trials.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    J. Am. Stat. Assoc. 22 (1927) 209-212; without continuity correction.
    """
    if not trials:
        return None
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / trials
    scale = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    spread = share * (1 - share) / trials + z * z / (4 * trials * trials)
    half = z * math.sqrt(spread) / scale
    return Interval(
        low=0.0 if successes == 0 else max(0.0, centre - half),
        high=1.0 if successes == trials else min(1.0, centre + half),
        confidence=confidence,
        method="wilson",
    )


def clustered_bootstrap(
    values: Floats,
    weights: Floats,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """Percentile bootstrap of Σ values / Σ weights, resampling whole clusters.

    `values` and `weights`, both of shape (clusters,), are sums over each cluster (an item with
    all its repeats). Clusters are drawn with replacement as often as there are clusters, and the
    ratio of each draw is taken: B. Efron, R. J. Tibshirani, "An Introduction to the Bootstrap"
    (1993), chapter 13 (percentiles); C. A. Field, A. H. Welsh, "Bootstrapping clustered data",
    J. R. Stat. Soc. B 69 (2007) 369-390 (clusters). None with fewer than two clusters, or when
    the weights are all 0; the same `seed` gives the same interval.
    """
    if len(values) < 2 or not weights.sum():
        return None
    sums = resample_sums(np.stack([values, weights], axis=1), resamples=resamples, seed=seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = sums[:, 0] / sums[:, 1]
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(ratios, [tail, 1 - tail])
    return Interval(
        low=float(low), high=float(high), confidence=confidence, method="bootstrap by item"
    )


def resample_sums(columns: Floats, *, resamples: int, seed: int) -> Floats:
    """Column sums of clusters drawn with replacement: (clusters, columns) → (resamples, columns).

    As many are drawn as there are clusters. Where many clusters are equal they are drawn together
    from a multinomial distribution, which is the same draw.
    """
    clusters = len(columns)
    generator = np.random.default_rng(seed)
    sums = np.empty((resamples, columns.shape[1]))
    step = max(1, _DRAWS_AT_ONCE // clusters)
    kinds, counts = np.unique(columns, axis=0, return_counts=True)
    rows = np.ascontiguousarray(columns.T)
    for first in range(0, resamples, step):
        size = min(step, resamples - first)
        if len(kinds) * 4 < clusters:
            drawn = generator.multinomial(clusters, counts / clusters, size=size) @ kinds
        else:
            chosen = generator.integers(clusters, size=(size, clusters))
            chosen += clusters * np.arange(size)[:, None]
            times = np.bincount(chosen.ravel(), minlength=size * clusters)
            # Not by BLAS: on a busy machine its threads wait for one another.
            drawn = np.einsum("rc,kc->rk", times.reshape(size, clusters).astype(float), rows)
        sums[first : first + size] = drawn
    return sums


def interval_of_ratio(
    values: Floats, weights: Floats, *, confidence: float = 0.95, seed: int = 0
) -> Interval | None:
    """The interval that fits Σ values / Σ weights; both have shape (items, repeats).

    Entries of weight 0 do not count. One 0-or-1 entry of weight 1 per item: Wilson. Otherwise
    the bootstrap clustered by item. Where every item has the share 0, or every item 1, resampling
    would give an interval without width; then Wilson with an item as one trial, which is wide
    enough however strongly an item's repeats agree. None without entries.
    """
    counted = weights > 0
    if not counted.any():
        return None
    entries = values[counted]
    binary = ((entries == 0) | (entries == 1)).all() and (weights[counted] == 1).all()
    if binary and (counted.sum(axis=1) <= 1).all():
        return wilson(float(entries.sum()), len(entries), confidence=confidence)
    totals = weights.sum(axis=1)
    sums = np.where(counted, values, 0).sum(axis=1)[totals > 0]
    totals = totals[totals > 0]
    if not sums.any() or np.array_equal(sums, totals):
        extreme = wilson(len(totals) if sums.any() else 0, len(totals), confidence=confidence)
        return msgspec.structs.replace(extreme, method="wilson by item") if extreme else None
    return clustered_bootstrap(sums, totals, confidence=confidence, seed=seed)
