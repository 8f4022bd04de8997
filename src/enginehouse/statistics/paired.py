"""Two systems measured on the same items: difference, interval, test, smallest detectable effect.

Arrays of shape (2, items, repeats) hold both systems; entry [s, i, r] of one and of the other were
measured on the same item. Differences are second - first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import msgspec
import numpy as np
from scipy.special import bdtr

from enginehouse.statistics.detectable import detectable_by_mcnemar
from enginehouse.statistics.intervals import Floats, Interval, resample_sums

LEAST_ITEMS = 6  # of five, not even differences that all agree are rare enough: 2 / 2⁵ > 0.05
_ROUNDING = 1e-12  # a difference that is 0 but for it
BOOTSTRAP = "paired bootstrap by item"
NO_ITEM_DIFFERS = "none: no item differs"


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


class MarginTest(msgspec.Struct, frozen=True, kw_only=True):
    """One-sided p-values of a difference against -margin.

    A small `worse` shows that the difference lies below -margin: the second is worse by more than
    that. A small `not_worse` shows that it lies above.
    """

    worse: float
    not_worse: float


class PairedBootstrap(msgspec.Struct, frozen=True, kw_only=True):
    """Interval and two-sided p-value of a difference."""

    interval: Interval
    p_value: float


def compare_paired(
    values: Floats, weights: Floats, *, confidence: float = 0.95
) -> PairedResult | None:
    """Compare Σ value / Σ weight of two systems, by what fits; None without a pair.

    Both arrays have shape (2, items, repeats); an entry counts if it has a weight above 0 in both.
    0-or-1 values of weight 1, one per item: exact McNemar test, Bonett and Price's interval.
    Otherwise the bootstrap clustered by item; there the least detectable difference is McNemar's
    with the items that differ as trials, times the typical size of their differences. The interval
    has this `confidence`, and 1 - confidence is the level at which a difference is detectable.
    """
    pairs = _pair_up(values, weights)
    if pairs is None:
        return None
    inference = (_by_mcnemar if pairs.single else _by_bootstrap)(pairs, confidence)
    return PairedResult(
        pairs=pairs.count,
        first=pairs.first,
        second=pairs.second,
        difference=pairs.second - pairs.first,
        interval=inference.interval,
        p_value=inference.p_value,
        method=inference.method,
        detectable=inference.detectable,
        only_first=pairs.only_first,
        only_second=pairs.only_second,
    )


def compare_with_margin(values: Floats, weights: Floats, *, margin: float) -> MarginTest | None:
    """Whether the difference is below or above -margin; None where there is no interval.

    The arrays are those of `compare_paired`, and so are the distributions: the p-values are the
    levels at which a one-sided interval just touches -margin.
    """
    pairs = _pair_up(values, weights)
    if pairs is None:
        return None
    if pairs.single:
        estimate = _adjusted(pairs.only_first or 0, pairs.only_second or 0, pairs.count)
        worse = NormalDist().cdf((estimate.centre + margin) / estimate.error)
        return MarginTest(worse=worse, not_worse=1 - worse)
    typical = pairs.typical_difference
    if pairs.items < LEAST_ITEMS or not typical:
        return None
    drawn = _draw_differences(pairs.sums, pairs.totals, typical=typical)
    return MarginTest(
        worse=float((drawn >= -margin - _ROUNDING).sum() + 1) / (len(drawn) + 1),
        not_worse=float((drawn <= -margin + _ROUNDING).sum() + 1) / (len(drawn) + 1),
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
    estimate = _adjusted(only_first, only_second, pairs)
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * estimate.error
    return Interval(
        low=max(-1.0, estimate.centre - half),
        high=min(1.0, estimate.centre + half),
        confidence=confidence,
        method="Bonett-Price",
    )


def paired_bootstrap(
    values: Floats,
    weights: Floats,
    *,
    typical: float,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedBootstrap:
    """Percentile bootstrap of the difference of Σ value / Σ weight, resampling whole items.

    `values` and `weights` have shape (2, items), each item's repeats summed; both systems' items
    are drawn together. Resampling alone takes a difference that few items show for certain: where
    3 of 100 items differ, its 95 % intervals cover 85 %. So, as Bonett and Price do for single
    pairs, two items are added, which differ by `typical` (see `typical_difference`) one way and
    the other; then they cover 94 % (simulated in tests/statistics/test_paired.py). The p-value is
    the level at which the interval just touches 0, at least 2 / (resamples + 1): B. Efron,
    R. J. Tibshirani, "An Introduction to the Bootstrap" (1993), section 15.4. The same `seed`
    gives the same.
    """
    drawn = _draw_differences(values, weights, typical=typical, resamples=resamples, seed=seed)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    beyond = min((drawn <= _ROUNDING).sum(), (drawn >= -_ROUNDING).sum())
    return PairedBootstrap(
        interval=Interval(
            low=float(low),
            high=float(high),
            confidence=confidence,
            method=BOOTSTRAP,
        ),
        p_value=min(1.0, 2 * float(beyond + 1) / (resamples + 1)),
    )


def typical_difference(differences: Floats) -> float:
    """Root mean square of the items' differences that are not 0; 0 if all are."""
    some = differences[differences != 0]
    return float(np.sqrt((some * some).mean())) if len(some) else 0.0


class _Inference(msgspec.Struct, frozen=True, kw_only=True):
    method: str
    interval: Interval | None = None
    p_value: float | None = None
    detectable: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """The entries that both systems have, summed by item; sums and totals have shape (2, items).

    `single`: 0-or-1 values of weight 1, one per item.
    """

    count: int
    sums: Floats
    totals: Floats
    single: bool
    only_first: int | None
    only_second: int | None

    @property
    def items(self) -> int:
        return int(self.sums.shape[1])

    @property
    def first(self) -> float:
        return float(self.sums[0].sum() / self.totals[0].sum())

    @property
    def second(self) -> float:
        return float(self.sums[1].sum() / self.totals[1].sum())

    @property
    def differences(self) -> Floats:
        """By item, in units of the figure."""
        shares = self.sums / self.totals.mean(axis=1)[:, None]
        differences: Floats = shares[1] - shares[0]
        return differences

    @property
    def typical_difference(self) -> float:
        """0 if no item differs, and it is not known how large a difference would be."""
        binary = self.only_first is not None
        return typical_difference(self.differences) or (1.0 if binary else 0.0)


def _pair_up(values: Floats, weights: Floats) -> _Pairs | None:
    counted = (weights[0] > 0) & (weights[1] > 0)
    count = int(counted.sum())
    if not count:
        return None
    values, weights = np.where(counted, values, 0.0), np.where(counted, weights, 0.0)
    used = counted.any(axis=1)
    entries = values[:, counted]
    binary = bool(((entries == 0) | (entries == 1)).all() and (weights[:, counted] == 1).all())
    return _Pairs(
        count=count,
        sums=values.sum(axis=2)[:, used],
        totals=weights.sum(axis=2)[:, used],
        single=binary and bool((counted.sum(axis=1) <= 1).all()),
        only_first=int((entries[0] > entries[1]).sum()) if binary else None,
        only_second=int((entries[1] > entries[0]).sum()) if binary else None,
    )


@dataclass(frozen=True, kw_only=True)
class _Estimate:
    centre: float
    error: float


def _adjusted(only_first: int, only_second: int, pairs: int) -> _Estimate:
    """Bonett and Price's estimate of the difference, and its standard error."""
    first, second = (only_first + 1) / (pairs + 2), (only_second + 1) / (pairs + 2)
    centre = second - first
    error = math.sqrt((first + second - centre * centre) / (pairs + 2))
    return _Estimate(centre=centre, error=error)


def _draw_differences(
    values: Floats, weights: Floats, *, typical: float, resamples: int = 10_000, seed: int = 0
) -> Floats:
    """The differences of the draws of `paired_bootstrap`."""
    middle = weights.mean(axis=1)
    level = values[0].sum() / weights[0].sum()
    added = np.array([[level, level], [level + typical, level - typical]]) * middle[:, None]
    columns = [
        np.concatenate([values, added], axis=1),
        np.concatenate([weights, np.stack([middle, middle], axis=1)], axis=1),
    ]
    sums = resample_sums(np.concatenate(columns).T, resamples=resamples, seed=seed)
    drawn: Floats = sums[:, 1] / sums[:, 3] - sums[:, 0] / sums[:, 2]
    return drawn


def _by_mcnemar(pairs: _Pairs, confidence: float) -> _Inference:
    only_first, only_second = pairs.only_first or 0, pairs.only_second or 0
    return _Inference(
        method="exact McNemar",
        interval=bonett_price(only_first, only_second, pairs.count, confidence=confidence),
        p_value=exact_mcnemar(only_first, only_second),
        detectable=detectable_by_mcnemar(
            pairs.count, (only_first + only_second) / pairs.count, alpha=1 - confidence
        ),
    )


def _by_bootstrap(pairs: _Pairs, confidence: float) -> _Inference:
    if pairs.items < LEAST_ITEMS:
        return _Inference(method=f"none: fewer than {LEAST_ITEMS} items")
    typical = pairs.typical_difference
    if not typical:
        return _Inference(method=NO_ITEM_DIFFERS)
    found = paired_bootstrap(pairs.sums, pairs.totals, typical=typical, confidence=confidence)
    differing = float((pairs.differences != 0).mean())
    least = detectable_by_mcnemar(pairs.items, differing, alpha=1 - confidence)
    return _Inference(
        method=BOOTSTRAP,
        interval=found.interval,
        p_value=found.p_value,
        detectable=None if least is None else least * typical,
    )
