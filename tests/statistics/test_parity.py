"""The distance between two programs' log-probabilities."""

from __future__ import annotations

import math

import pytest

from enginehouse.statistics.parity import token_parity


def test_the_same_is_no_distance():
    """Ratios of one, nothing clipped."""
    found = token_parity([[-1.0, -2.0], [-3.0]], [[-1.0, -2.0], [-3.0]])
    assert (found.tokens, found.mean, found.largest, found.clipped) == (3, 0.0, 0.0, 0.0)
    assert (found.ratio_mean, found.ratio_least, found.ratio_most) == (1.0, 1.0, 1.0)


def test_differences_and_where_the_largest_is():
    """By hand: 0.1, 0, -0.5 and 0.2; the third is the second sequence's first."""
    found = token_parity([[-0.9, -2.0], [-3.5, -0.8]], [[-1.0, -2.0], [-3.0, -1.0]])
    assert found.mean == pytest.approx(0.2)
    assert found.largest == pytest.approx(0.5)
    assert (found.sequence, found.token) == (1, 0)
    ratios = [math.exp(x) for x in (0.1, 0, -0.5, 0.2)]
    assert found.ratio_mean == pytest.approx(sum(ratios) / 4)
    assert found.ratio_least == pytest.approx(min(ratios))
    assert found.ratio_most == pytest.approx(max(ratios))
    assert found.clipped == 0.5


def test_an_empty_sequence_shifts_nothing():
    """The place counts sequences as they were given."""
    found = token_parity([[], [-1.0], []], [[], [-2.0], []])
    assert (found.sequence, found.token) == (1, 0)


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        ([[-1.0]], [[-1.0, -2.0]]),
        ([[-1.0]], [[-1.0], [-1.0]]),
        ([], []),
        ([[]], [[]]),
        ([[math.nan]], [[-1.0]]),
        ([[-math.inf]], [[-1.0]]),
    ],
)
def test_what_cannot_be_compared(ours, reference):
    """Is an error, not a figure."""
    with pytest.raises(ValueError, match=r"same|finite"):
        token_parity(ours, reference)
