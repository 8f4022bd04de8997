"""Two systems measured on the same items: difference, interval, test, smallest detectable effect.

Arrays of shape (2, items, repeats) hold both systems; entry [s, i, r] of one and of the other were
measured on the same item. Differences are second - first.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import msgspec
import numpy as np
from scipy.special import bdtr, ndtr, ndtri, stdtr, stdtrit

from enginehouse.statistics.detectable import detectable_by_error, detectable_by_mcnemar
from enginehouse.statistics.intervals import Floats, Interval, resample_sums

LEAST_CLUSTERS = 6  # with five, not even differences that all agree are rare enough: 2 / 2⁵ > 0.05
_NO_SPREAD = 1e-12


class PairedResult(msgspec.Struct, frozen=True, kw_only=True):
    """What two systems' values on the same items say about their difference.

    `pairs` counts the entries that both have. `first` and `second` are Σ value / Σ weight over
    them. `interval` and `p_value` (two-sided) are None where nothing can be said; `method` says
    how they were made, or why not. `detectable` is the least absolute difference that would have
    been found (level 0.05, power 0.8), None if none. `only_first` and `only_second` count the
    pairs of 0-or-1 values where only that one is 1, None for other values.
    """

    pairs: int
    first: float
    second: float
    difference: float
    interval: Interval | None
    p_value: float | None
    method: str
    detectable: float | None
    only_first: int | None
    only_second: int | None


class PairedBootstrap(msgspec.Struct, frozen=True, kw_only=True):
    """Interval, two-sided p-value and standard error of a difference."""

    interval: Interval
    p_value: float
    error: float


def compare_paired(values: Floats, weights: Floats) -> PairedResult | None:
    """Compare Σ value / Σ weight of two systems, by what fits; None without a pair.

    Both arrays have shape (2, items, repeats); an entry counts if it has a weight above 0 in both.
    0-or-1 values of weight 1, one per item: exact McNemar test, Bonett and Price's interval.
    Otherwise the bootstrap clustered by item. Where all items have the same difference resampling
    has no spread: then the exact test counts the items by the sign of their differences, and there
    is an interval if each difference is -1, 0 or 1 (an item as one trial).
    """
    counted = (weights[0] > 0) & (weights[1] > 0)
    pairs = int(counted.sum())
    if not pairs:
        return None
    values, weights = np.where(counted, values, 0.0), np.where(counted, weights, 0.0)
    used = counted.any(axis=1)
    sums, totals = values.sum(axis=2)[:, used], weights.sum(axis=2)[:, used]
    first, second = (float(s.sum() / t.sum()) for s, t in zip(sums, totals, strict=True))
    entries = values[:, counted]
    binary = bool(((entries == 0) | (entries == 1)).all() and (weights[:, counted] == 1).all())
    only_first = int((entries[0] > entries[1]).sum()) if binary else None
    only_second = int((entries[1] > entries[0]).sum()) if binary else None
    if binary and (counted.sum(axis=1) <= 1).all():
        found = _by_sign(entries[1] - entries[0], name="exact McNemar")
    else:
        found = _by_bootstrap(sums, totals, binary=binary)
    return PairedResult(
        pairs=pairs,
        first=first,
        second=second,
        difference=second - first,
        interval=found.interval,
        p_value=found.p_value,
        method=found.method,
        detectable=found.detectable,
        only_first=only_first,
        only_second=only_second,
    )


def exact_mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value: min(1, 2 * P(binomial(discordant pairs, 1/2) ≤ the smaller count)).

    Q. McNemar, Psychometrika 12 (1947) 153-157, with the binomial in place of its approximation.
    """
    discordant = only_first + only_second
    return min(1.0, 2 * float(bdtr(min(only_first, only_second), discordant, 0.5)))


def bonett_price(
    only_first: int, only_second: int, pairs: int, *, confidence: float = 0.95
) -> Interval:
    """Interval of the difference (second - first) of two paired shares.

    Wald's with one pair added to each discordant count: D. G. Bonett, R. M. Price, J. Educ. Behav.
    Stat. 37 (2012) 479-488. It has width even where no pair is discordant.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    first, second = (only_first + 1) / (pairs + 2), (only_second + 1) / (pairs + 2)
    centre = second - first
    half = z * math.sqrt((first + second - centre * centre) / (pairs + 2))
    return Interval(
        low=max(-1.0, centre - half),
        high=min(1.0, centre + half),
        confidence=confidence,
        method="Bonett-Price",
    )


def paired_bootstrap(
    values: Floats,
    weights: Floats,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedBootstrap | None:
    """Bootstrap of the difference of Σ value / Σ weight, resampling whole items for both at once.

    `values` and `weights` have shape (2, items), each item's repeats summed. The interval is the
    expanded percentile interval: percentiles Φ(±√(n / (n - 1)) t), because the plain ones are too
    narrow for few items (T. C. Hesterberg, The American Statistician 69 (2015) 371-386). The
    p-value is the level at which that interval just touches 0, so the two never contradict each
    other; with 10,000 resamples it is at least about 0.0002. The same `seed` gives the same. None
    with fewer than LEAST_CLUSTERS items, or when all draws are equal.
    """
    clusters = values.shape[1]
    if clusters < LEAST_CLUSTERS:
        return None
    sums = resample_sums(np.concatenate([values, weights]).T, resamples=resamples, seed=seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = sums[:, 1] / sums[:, 3] - sums[:, 0] / sums[:, 2]
    drawn = drawn[np.isfinite(drawn)]
    if np.ptp(drawn) < _NO_SPREAD:
        return None
    stretch = math.sqrt(clusters / (clusters - 1))
    tail = float(ndtr(stretch * stdtrit(clusters - 1, (1 - confidence) / 2)))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    beyond = min((drawn <= 0).sum(), (drawn >= 0).sum())
    one_sided = (beyond + 1) / (len(drawn) + 1)
    p_value = 2 * float(stdtr(clusters - 1, ndtri(min(0.5, one_sided)) / stretch))
    return PairedBootstrap(
        interval=Interval(
            low=float(low),
            high=float(high),
            confidence=confidence,
            method="paired bootstrap by item",
        ),
        p_value=min(1.0, p_value),
        error=float(drawn.std(ddof=1)) * stretch,
    )


class _Inference(msgspec.Struct, frozen=True, kw_only=True):
    method: str
    interval: Interval | None = None
    p_value: float | None = None
    detectable: float | None = None


def _by_sign(differences: Floats, *, name: str) -> _Inference:
    """Each difference is one trial."""
    pairs = len(differences)
    fewer, more = int((differences < 0).sum()), int((differences > 0).sum())
    whole = bool(np.isin(differences, (-1.0, 0.0, 1.0)).all())
    return _Inference(
        method=name,
        interval=bonett_price(fewer, more, pairs) if whole else None,
        p_value=exact_mcnemar(fewer, more),
        detectable=detectable_by_mcnemar(pairs, (fewer + more) / pairs) if whole else None,
    )


def _by_bootstrap(sums: Floats, totals: Floats, *, binary: bool) -> _Inference:
    clusters = sums.shape[1]
    if clusters < LEAST_CLUSTERS:
        return _Inference(method=f"none: fewer than {LEAST_CLUSTERS} items")
    if (found := paired_bootstrap(sums, totals)) is None:
        differences = sums[1] / totals[1] - sums[0] / totals[0]
        return _by_sign(differences, name="exact McNemar by item")
    detectable = detectable_by_error(found.error, clusters)
    return _Inference(
        method="paired bootstrap by item",
        interval=found.interval,
        p_value=found.p_value,
        detectable=None if binary and detectable > 1 else detectable,
    )
