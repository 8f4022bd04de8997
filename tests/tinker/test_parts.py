"""A request in parts, and its result from theirs."""

from __future__ import annotations

import numpy as np
import pytest

from enginehouse.tinker.data import Datum, LossRequest, LossResult
from enginehouse.tinker.parts import join_results, split_request


def a_request(*lengths: int) -> LossRequest:
    """With one datum of each length."""
    data = tuple(Datum(tokens=np.zeros(length, np.int32), inputs={}) for length in lengths)
    return LossRequest(model_id="m", loss="ppo", data=data, config={"a": 1.0}, backward=False)


@pytest.mark.parametrize(
    ("lengths", "parts"),
    [
        ((10, 10, 10), [[10], [10], [10]]),
        ((5, 5, 5), [[5, 5], [5]]),
        ((30, 1, 9, 1), [[30], [1, 9], [1]]),
        ((10,), [[10]]),
    ],
)
def test_a_part_is_within_the_budget_or_one_datum(lengths: tuple[int, ...], parts: list[list[int]]):
    """In order, and with all that the request says."""
    split = split_request(a_request(*lengths), tokens=10)
    assert [[len(datum.tokens) for datum in part.data] for part in split] == parts
    assert all(
        (part.loss, part.config, part.backward) == ("ppo", {"a": 1.0}, False) for part in split
    )


def test_results_are_joined_as_the_sdk_joins_chunks():
    """Sums add up, and a mean is weighted by datums."""
    results = [
        LossResult(
            outputs=tuple({"logprobs": np.zeros(1, np.float32)} for _ in range(datums)),
            metrics={"loss:sum": loss, "ratio:mean": ratio, "most:max": loss, "least:min": loss},
        )
        for datums, loss, ratio in ((3, 1.0, 2.0), (1, 5.0, 6.0))
    ]
    joined = join_results(results)
    assert len(joined.outputs) == 4
    assert joined.metrics == {"loss:sum": 6, "ratio:mean": 3, "most:max": 5, "least:min": 1}
