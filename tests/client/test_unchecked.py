from __future__ import annotations

import pytest

from enginehouse.client.unchecked import Unchecked
from enginehouse.core.errors import ContextOverflowError, UnknownModelError
from enginehouse.core.messages import Prompt, TextPrompt, TokenPrompt
from enginehouse.core.sampler import SampleRequest
from enginehouse.core.sampling import SamplingParameters

SERVED = Unchecked(names=("mine", "alias"), context=100)


def ask(max_tokens: int, prompt: Prompt = TextPrompt("Hello")) -> SampleRequest:  # noqa: B008
    """A request for so many tokens."""
    return SampleRequest(prompt=prompt, parameters=SamplingParameters(max_tokens=max_tokens))


def test_a_name_that_is_not_served_is_refused():
    """The server would answer with its only model; the error says what it serves."""
    SERVED.require_answerable(ask(8), model="alias")
    with pytest.raises(UnknownModelError, match="mine, alias"):
        SERVED.require_answerable(ask(8), model="other")


def test_an_answer_that_cannot_fit_is_refused():
    """A prompt of unknown length has a token at least; that of token ids is known."""
    SERVED.require_answerable(ask(99), model="mine")
    with pytest.raises(ContextOverflowError, match="100 tokens"):
        SERVED.require_answerable(ask(100), model="mine")
    SERVED.require_answerable(ask(90, TokenPrompt((1,) * 10)), model="mine")
    with pytest.raises(ContextOverflowError):
        SERVED.require_answerable(ask(91, TokenPrompt((1,) * 10)), model="mine")


def test_an_unknown_context_refuses_nothing():
    """Old builds do not say."""
    Unchecked(names=("mine",), context=None).require_answerable(ask(10**9), model="mine")
