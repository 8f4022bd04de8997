from __future__ import annotations

import pytest

from enginehouse.statistics.percentiles import Percentiles, needed, percentiles


@pytest.mark.parametrize(("percent", "least"), [(50, 2), (95, 20), (99, 100)])
def test_a_percentile_needs_values_beyond_it(percent: int, least: int):
    """1 / (1 - p) values: with one fewer it is None, with as many it is there."""
    assert needed(percent) == least
    name = f"p{percent}"
    assert getattr(percentiles([1.0] * (least - 1)), name) is None
    assert getattr(percentiles([1.0] * least), name) == 1.0


def test_against_known_values():
    """0 to 100: the k-th percentile is k, whatever the order; between two values it is linear."""
    found = percentiles([float(value) for value in reversed(range(101))])
    assert (found.n, found.mean, found.p50, found.p95, found.p99) == (101, 50.0, 50.0, 95.0, 99.0)
    assert percentiles([1.0, 2.0]).p50 == 1.5


def test_nothing():
    """No values: nothing is known, nothing is raised."""
    assert percentiles([]) == Percentiles(n=0, mean=None, p50=None, p95=None, p99=None)
