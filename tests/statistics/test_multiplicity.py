from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.statistics.multiplicity import holm


def test_a_worked_example():
    """Four p-values, multiplied by 4, 3, 2, 1 in their order and never falling."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_none_and_one():
    """A single test is not corrected."""
    assert holm([]) == []
    assert holm([0.03]) == [0.03]


@given(st.lists(st.floats(0, 1), max_size=8))
def test_between_the_p_value_and_bonferroni(p_values):
    """No adjusted value is below its own p, above Bonferroni's or 1, or out of order."""
    adjusted = holm(p_values)
    for p, a in zip(p_values, adjusted, strict=True):
        assert p <= a <= min(1.0, len(p_values) * p) + 1e-12
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert [adjusted[i] for i in order] == sorted(adjusted)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.5))
def test_rejects_what_the_stepwise_procedure_rejects(p_values, alpha):
    """Those at most alpha: Holm's procedure goes up while p(i) ≤ alpha / (m - i), then stops."""
    adjusted = holm(p_values)
    rejected = set()
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if (len(p_values) - rank) * p_values[i] > alpha:
            break
        rejected.add(i)
    assert {i for i, a in enumerate(adjusted) if a <= alpha} == rejected
