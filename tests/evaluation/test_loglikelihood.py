from __future__ import annotations

import asyncio

import msgspec
import pytest
from tests.support.evaluation_fakes import FakeSampler

from enginehouse.core.errors import ConnectionFailedError, MalformedResponseError, TaskError
from enginehouse.core.sampler import TokenLogprob
from enginehouse.evaluation.loglikelihood import ask_choices, continuation_of, encode_choices
from enginehouse.tasks.base import Choose

QUESTION = Choose(context="The sky is  ", continuations=("blue", "green"))


class MergingSampler(FakeSampler):
    """A tokenizer with "is b" as one token, as byte-pair encodings merge across the border."""

    async def tokenize(self, text, *, add_special_tokens=True):
        """Code points, "s b" merged to 1."""
        return await super().tokenize(text.replace("s b", "\1"))


async def test_encoding_follows_lm_evaluation_harness():
    """Spaces move to the continuation; its tokens are those after the context's own."""
    sampler = FakeSampler()
    choices = await encode_choices(sampler, QUESTION)
    assert [c.start for c in choices] == [1 + len("The sky is")] * 2
    assert choices[0].request.prompt.token_ids == (0, *map(ord, "The sky is  blue"))
    parameters = choices[0].request.parameters
    assert (parameters.prompt_logprobs, parameters.max_tokens) == (0, 1)
    assert (parameters.temperature, parameters.seed) == (0.0, None)


async def test_merged_border_tokens_are_cut_where_the_harness_cuts():
    """If context and continuation merge, whole[len(tokens(context)):] is what remains."""
    question = Choose(context="sky is", continuations=(" blue",))
    (choice,) = await encode_choices(MergingSampler(), question)
    # whole: 0 s k y space i \1 l u e (10 tokens); context: 0 s k y space i s (7 tokens)
    assert choice.request.prompt.token_ids[choice.start :] == tuple(map(ord, "lue"))


async def test_context_is_tokenized_once():
    """However many continuations there are."""
    sampler = FakeSampler()
    await encode_choices(sampler, Choose(context="C", continuations=tuple("abcd")))
    assert sampler.tokenized == {"C": 1, "Ca": 1, "Cb": 1, "Cc": 1, "Cd": 1}


async def test_sums_the_continuations_natural_logs():
    """Only the continuation's tokens count, the moved spaces among them."""
    sampler = FakeSampler()
    choices = await encode_choices(sampler, QUESTION)
    responses = await ask_choices(sampler, choices)
    found = continuation_of(choices[0], responses[0])
    assert found.loglikelihood == pytest.approx(-sum(map(ord, "  blue")) / 100)
    assert found.logprobs == tuple(-ord(c) / 100 for c in "  blue")


async def test_requests_of_an_item_are_concurrent():
    """All continuations are in flight together."""
    sampler = FakeSampler()
    choices = await encode_choices(sampler, Choose(context="C", continuations=tuple("abcd")))
    await ask_choices(sampler, choices)
    assert sampler.most_in_flight == 4


async def test_one_failure_ends_the_others():
    """The first error is raised as it is, and no request is left behind."""

    class OneFails(FakeSampler):
        async def sample(self, request):
            self.in_flight += 1
            try:
                if request.prompt.token_ids[-1] == ord("b"):
                    raise ConnectionFailedError("refused")
                await asyncio.Event().wait()
            finally:
                self.in_flight -= 1

    sampler = OneFails()
    choices = await encode_choices(sampler, Choose(context="C", continuations=tuple("abcd")))
    with pytest.raises(ConnectionFailedError, match="refused"):
        await ask_choices(sampler, choices)
    assert sampler.in_flight == 0


@pytest.mark.parametrize("context", ["", "  \n"])
async def test_empty_context_is_the_tasks_fault(context):
    """The first token has no log-probability, so something must stand before the continuation."""
    with pytest.raises(TaskError, match="empty context"):
        await encode_choices(FakeSampler(), Choose(context=context, continuations=("a",)))


async def test_empty_continuation_is_the_tasks_fault():
    """A continuation without tokens would have the log-likelihood 0, the best there is."""
    with pytest.raises(TaskError, match="no tokens"):
        await encode_choices(FakeSampler(), Choose(context="C", continuations=("",)))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda given: None, "got no"),
        (lambda given: given[:-1], "prompt log-probabilities, got"),
        (lambda given: (*given[:-1], None), "has no log-probability"),
        (lambda given: (*given[:-1], TokenLogprob(logprob=float("-inf"), text="")), "has no log"),
        (
            lambda given: (*given[:-1], TokenLogprob(logprob=-1.0, text="", token_id=5)),
            "came back for token 5",
        ),
    ],
)
async def test_unusable_logprobs_are_malformed(spoil, message):
    """A reply that cannot be summed up is a failed sample, never a number."""
    sampler = FakeSampler()
    choices = await encode_choices(sampler, QUESTION)
    response = (await ask_choices(sampler, choices))[0]
    spoilt = msgspec.structs.replace(response, prompt_logprobs=spoil(response.prompt_logprobs))
    with pytest.raises(MalformedResponseError, match=message):
        continuation_of(choices[0], spoilt)
