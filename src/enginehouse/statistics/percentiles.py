"""Percentiles of latencies, and only those that the sample is large enough to show."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np


class Percentiles(msgspec.Struct, frozen=True, kw_only=True):
    """Of `n` values, in their unit. None: too few values (see `percentiles`), or none at all."""

    n: int
    mean: float | None
    p50: float | None
    p95: float | None
    p99: float | None


def needed(percent: int) -> int:
    """The fewest values that show a percentile: 1 / (1 - p), of which one is expected beyond it."""
    return -(-100 // (100 - percent))


def percentiles(values: Sequence[float]) -> Percentiles:
    """Mean and percentiles, interpolated linearly between order statistics (numpy's default).

    A percentile p of fewer than 1 / (1 - p) values would be their maximum by another name, and is
    None: p50 needs 2 values, p95 needs 20, p99 needs 100.
    """
    n = len(values)

    def shown(percent: int) -> float | None:
        return float(np.percentile(values, percent)) if n >= needed(percent) else None

    return Percentiles(
        n=n,
        mean=float(np.mean(values)) if n else None,
        p50=shown(50),
        p95=shown(95),
        p99=shown(99),
    )
