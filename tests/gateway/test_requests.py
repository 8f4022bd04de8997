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
    assert (read_body(body).scores.prompt_logprobs is not None) is scores


@pytest.mark.parametrize(
    ("body", "candidates", "named"),
    [
        (b'{"logprobs": 5}', 5, False),
        (b'{"logprobs": 0}', None, False),
        (b'{"logprobs": true}', 0, False),
        (b'{"logprobs": true, "top_logprobs": 3}', 3, False),
        (b'{"logprobs": "many"}', 0, False),
        (b'{"logprobs": 2, "logprob_token_ids": [7, 8]}', 2, True),
        (b"{}", None, False),
    ],
)
def test_candidates_and_named_tokens(body: bytes, candidates: int | None, *, named: bool) -> None:
    """Where one spoils the other, they are not in the engine at the same time."""
    scores = read_body(body).scores
    assert scores.logprobs == candidates
    assert ("logprob_token_ids" in scores.extra) is named


def test_only_the_model_is_replaced() -> None:
    """Numbers keep their digits, fields their order."""
    body = b'{"seed": 10000000000000000000001, "model": "a", "temperature": 1e-7, "x": [1.0]}'
    expected = b'{"seed":10000000000000000000001,"model":"b","temperature":1e-7,"x":[1.0]}'
    assert with_model(body, "b") == expected
