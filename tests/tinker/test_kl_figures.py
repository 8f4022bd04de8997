"""The figures of sampled and trained log-probabilities, and how the SDK combines them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from enginehouse.tinker.data import Datum, LossRequest, LossResult
from enginehouse.tinker.kl_figures import KlFigures, measure_kl


def figures(
    sampled: Sequence[float],
    trained: Sequence[float],
    *,
    advantages: Sequence[float] | None = None,
    spans: Sequence[bool] | None = None,
) -> KlFigures | None:
    """Those of one sequence."""
    inputs: dict[str, np.ndarray] = {"logprobs": np.array(sampled, np.float32)}
    if advantages is not None:
        inputs["advantages"] = np.array(advantages, np.float32)
    datum = Datum(
        tokens=np.zeros(len(sampled), np.int32),
        inputs=inputs,
        sampled=None if spans is None else np.array(spans),
    )
    outputs: Mapping[str, np.ndarray] = {"logprobs": np.array(trained, np.float32)}
    return measure_kl(
        LossRequest(model_id="m", loss="importance_sampling", data=(datum,)),
        LossResult(outputs=(outputs,), metrics={}),
    )


def test_v1_is_the_mean_difference_and_v2_half_the_mean_square():
    """As in the tinker-cookbook, of sampled minus trained."""
    assert figures([-1.0, -2.0], [-1.5, -2.25]) == KlFigures(
        v1=0.375, v2=0.5 * (0.25 + 0.0625) / 2, positions=2
    )


def test_what_was_not_sampled_does_not_count():
    """It has advantage 0; what the request marks as sampled counts even so."""
    same = figures([-1.0, 0.0, 0.0], [-1.5, -9.0, -9.0], advantages=[2.0, 0.0, 0.0])
    assert same == KlFigures(v1=0.5, v2=0.125, positions=1)
    both = figures([-1.0, -1.0], [-1.5, -1.5], advantages=[2.0, 0.0], spans=[False, True])
    assert both == KlFigures(v1=0.5, v2=0.125, positions=2)


def test_a_request_in_which_nothing_counts_has_figures_of_zero():
    """So that every chunk of a batch has the same metrics, or the SDK would drop them."""
    assert figures([0.0], [-1.0], advantages=[0.0]) == KlFigures(v1=0.0, v2=0.0, positions=0)


def test_a_loss_without_sampled_logprobs_has_none():
    """Such as cross_entropy."""
    datum = Datum(tokens=np.zeros(1, np.int32), inputs={"weights": np.ones(1, np.float32)})
    result = LossResult(outputs=({"logprobs": np.zeros(1, np.float32)},), metrics={})
    request = LossRequest(model_id="m", loss="cross_entropy", data=(datum,))
    assert measure_kl(request, result) is None


@pytest.mark.parametrize(
    ("v1", "v2", "exceeds"),
    [
        (0.01, 0.001, False),
        (-0.06, 0.001, True),
        (0.06, 0.001, True),
        (0.0, 0.06, True),
        (float("nan"), 0.0, True),
    ],
)
def test_a_warning_is_given_above_the_threshold(v1: float, v2: float, *, exceeds: bool):
    """Of either figure, and for what is not a number."""
    metrics = KlFigures(v1=v1, v2=v2, positions=8).metrics(threshold=0.05)
    assert metrics["kl_warning:max"] == float(exceeds)
    assert all(name.partition(":")[2] in {"mean", "sum", "max"} for name in metrics)
