"""What fits a model's context."""

from __future__ import annotations

import numpy as np
import pytest

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.sampling.base import TokenPrompt
from enginehouse.tinker.sampling.prompts import tokens_wanted


def _wanted(length: int, **fields: object) -> int:
    prompt = TokenPrompt(tokens=np.zeros(length, np.int32), **fields)  # type: ignore[arg-type]
    return tokens_wanted(prompt, max_length=10)


def test_what_is_wanted():
    """As many as were asked for, or as fit."""
    assert _wanted(4, max_tokens=6) == 6
    assert _wanted(4) == 6
    assert _wanted(4, max_tokens=0) == 0


def test_the_longest_prompt_can_be_scored():
    """The one token that the SDK then asks for is a formality."""
    assert _wanted(10, max_tokens=1, prompt_logprobs_from=1) == 1
    assert _wanted(10, max_tokens=0) == 0


@pytest.mark.parametrize(
    ("length", "fields", "said"),
    [
        (0, {}, "no tokens"),
        (11, {}, "11 tokens"),
        (11, {"max_tokens": 1, "prompt_logprobs_from": 1}, "11 tokens"),
        (10, {}, "10 tokens"),
        (4, {"max_tokens": 7}, "at most 6 tokens"),
    ],
)
def test_what_does_not_fit_is_the_users_mistake(length, fields, said):
    """It says what would fit."""
    with pytest.raises(TinkerError) as caught:
        _wanted(length, **fields)
    assert said in str(caught.value)
    assert caught.value.category == "user"
