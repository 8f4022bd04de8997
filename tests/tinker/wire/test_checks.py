from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.data import Datum, LossRequest
from enginehouse.tinker.wire import LOSSES, require_valid_data

ONES = np.ones(3, dtype=np.float32)
TARGETS = np.array([1, 2, 9], dtype=np.int64)
POLICY = {"target_tokens": TARGETS, "logprobs": -ONES, "advantages": ONES}


def datum(tokens: list[int] | None = None, **inputs: Any) -> Datum:
    """Three tokens, whose targets are 1, 2 and 9."""
    ids = np.array([0, 1, 2] if tokens is None else tokens, dtype=np.int32)
    return Datum(tokens=ids, inputs={"target_tokens": TARGETS, "weights": ONES} | inputs)


def policy_datum(**inputs: Any) -> Datum:
    """As `datum`, for a loss of reinforcement learning."""
    return Datum(tokens=np.array([0, 1, 2], dtype=np.int32), inputs=POLICY | inputs)


def request(*data: Datum, loss: str = "cross_entropy", **config: Any) -> LossRequest:
    """A request of the model m."""
    return LossRequest(model_id="m", loss=loss, data=data, config=config)


def check(checked: LossRequest, **changes: Any) -> None:
    """For a model of 10 ids and 5 positions."""
    require_valid_data(checked, **({"vocabulary_size": 10, "max_length": 5} | changes))


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_takes_what_the_cookbook_sends(loss):
    """With its parameters, and padding of zeros."""
    mask = {"sequence_ratio_mask": ONES} if loss == "gspo" else {}
    one = datum() if loss == "cross_entropy" else policy_datum(**mask)
    one = replace(one, sampled=np.array([False, True, True]))
    check(request(one, one, loss=loss, **dict.fromkeys(LOSSES[loss].parameters, 0.5)))


def test_cross_entropy_takes_matrices_and_negative_weights():
    """[N, K] targets, and the gradients of a custom loss as weights."""
    targets = np.stack([TARGETS, TARGETS], axis=1)
    check(request(datum(target_tokens=targets, weights=-np.ones((3, 2), dtype=np.float32))))
    check(request(datum(weights=ONES)))


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (request(), "the request has no data"),
        (request(datum(), loss="cross_entropie"), "there is no loss called 'cross_entropie'"),
        (request(datum(), loss="custom"), "custom losses do not run in this service"),
        (request(datum(), beta=1.0), "cross_entropy has no parameter 'beta'"),
        (request(policy_datum(), loss="dro", beta="x"), "beta must be a finite number, not 'x'"),
        (request(policy_datum(), loss="dro", beta=np.inf), "finite number, not inf"),
        (request(datum(), datum([], target_tokens=TARGETS[:0])), "datum 1 is empty"),
        (request(datum([0] * 6)), "datum 0 has 6 tokens, but the longest sequence here is 5"),
        (request(datum([0, 10, 2])), "datum 0: model_input[1] is 10, which is not one of"),
        (request(datum([0, 1, -1])), "datum 0: model_input[2] is -1"),
        (
            request(datum(), datum(target_tokens=np.array([1, 2**40, 3]))),
            "datum 1: target_tokens[1] is 1099511627776, which is not one of the model's 10",
        ),
        (request(datum(target_tokens=TARGETS[:2])), "target_tokens has the shape [2]"),
        (request(datum(target_tokens=ONES)), "target_tokens must be integers, not float32"),
        (
            request(datum(target_tokens=np.zeros((3, 0), dtype=np.int64))),
            "target_tokens has the shape [3, 0], and so no targets",
        ),
        (
            request(Datum(tokens=np.zeros(3, np.int32), inputs={})),
            "cross_entropy needs target_tokens",
        ),
        (request(datum(), loss="ppo"), "datum 0: ppo needs advantages, logprobs"),
        (request(datum(mask=ONES)), "datum 0: cross_entropy does not take mask"),
        (request(datum(weights=TARGETS)), "weights must be float32, not int64"),
        (
            request(datum(weights=ONES[:2])),
            "weights has the shape [2], but target_tokens has [3]",
        ),
        (
            request(datum(weights=np.array([1, np.nan, 1], dtype=np.float32))),
            "datum 0: weights[1] is nan, not a finite number",
        ),
        (
            request(policy_datum(logprobs=np.array([0, 0, -np.inf], np.float32)), loss="ppo"),
            "datum 0: logprobs[2] is -inf",
        ),
        (
            request(policy_datum(target_tokens=np.stack([TARGETS, TARGETS], axis=1)), loss="ppo"),
            "target_tokens has the shape [3, 2], but the datum's 3 tokens need [3]",
        ),
        (
            request(policy_datum(), loss="stable_reinforce"),
            "needs to know which tokens were sampled",
        ),
    ],
)
def test_what_a_model_cannot_compute_is_named(bad, said):
    """The datum, the tensor, the position and the value, as the user's mistake."""
    with pytest.raises(TinkerError) as refused:
        check(bad)
    assert said in refused.value.message
    assert refused.value.category == "user"


def test_a_position_in_a_matrix_has_two_indices():
    """Row and column."""
    targets = np.zeros((3, 2), dtype=np.int64)
    targets[2, 1] = 10
    with pytest.raises(TinkerError, match=r"target_tokens\[2, 1\] is 10"):
        check(request(datum(target_tokens=targets)))


def test_an_unknown_loss_is_told_the_known_ones():
    """Only those that the trainer has."""
    with pytest.raises(TinkerError) as refused:
        check(request(policy_datum(), loss="dro"), losses=("cross_entropy", "ppo", "own"))
    assert refused.value.fix is not None
    assert "known: cross_entropy, ppo" in refused.value.fix
