"""What is read of a request, and what is written."""

from __future__ import annotations

import pytest

from enginehouse.gateway.requests import read_body, with_model


@pytest.mark.parametrize(
    ("body", "scores"),
    [
        (b'{"echo": true, "logprobs": 0}', True),
        (b'{"prompt_logprobs": 0}', True),
        (b'{"echo": true}', False),
        (b'{"echo": false, "logprobs": 5}', False),
        (b'{"logprobs": true, "top_logprobs": 5}', False),
    ],
)
def test_prompts_whose_log_probabilities_are_wanted(body: bytes, scores: bool) -> None:  # noqa: FBT001
    """They go to the engine alone where it does not survive them together."""
    assert read_body(body).scores_prompt is scores


def test_only_the_model_is_replaced() -> None:
    """Numbers keep their digits, fields their order."""
    body = b'{"seed": 10000000000000000000001, "model": "a", "temperature": 1e-7, "x": [1.0]}'
    expected = b'{"seed":10000000000000000000001,"model":"b","temperature":1e-7,"x":[1.0]}'
    assert with_model(body, "b") == expected
