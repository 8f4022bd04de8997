"""Any ids at any position, and draws, from one request for each beginning of the prompt."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from tests.support.token_sampler import TokenSampler

from enginehouse.core.errors import MalformedResponseError, TinkerError
from enginehouse.tinker.sampling.base import TokenPrompt
from enginehouse.tinker.sampling.prefixes import (
    MOST_POSITIONS,
    draw_alternatives,
    score_targets,
    together,
)

TOKENS = np.array([3, 1, 4, 1, 5], np.int32)


async def test_targets_are_scored_where_they_were_asked_for():
    """Each after its beginning of the prompt; a position without any costs no request."""
    sampler = TokenSampler()
    targets = np.full((4, 3), -1, np.int64)
    targets[1], targets[3, 2] = (9, 9, 30), 7
    given = await score_targets(
        sampler, TokenPrompt(tokens=TOKENS, targets=targets), model="base", at_once=9
    )
    after_two, after_four = sampler.logprobs([3, 1], None), sampler.logprobs([3, 1, 4, 1], None)
    wanted = np.zeros((4, 3), np.float32)
    wanted[1], wanted[3, 2] = after_two[[9, 9, 30]], after_four[7]
    np.testing.assert_allclose(given, wanted, rtol=1e-6)
    assert len(sampler.asked) == 2


async def test_few_are_asked_at_once():
    """At most as many sequences as one user may have in the engine."""

    class Counting(TokenSampler):
        running = most = 0

        async def sample(self, request):
            self.running += request.parameters.n
            self.most = max(self.most, self.running)
            response = await super().sample(request)
            self.running -= request.parameters.n
            return response

    sampler = Counting()
    tokens = np.zeros(30, np.int32)
    prompt = TokenPrompt(tokens=tokens, targets=np.full((29, 1), 5, np.int64))
    await score_targets(sampler, prompt, model="base", at_once=6)
    assert (len(sampler.asked), sampler.most) == (29, 6)
    await draw_alternatives(
        sampler, TokenPrompt(tokens=tokens, alternatives=4), model="base", at_once=6
    )
    assert (len(sampler.asked), sampler.most) == (58, 6)


async def test_more_ids_than_one_request_takes():
    """They are asked in parts of 128."""
    sampler = TokenSampler()
    targets = np.arange(300)[None]
    prompt = TokenPrompt(tokens=TOKENS[:2], targets=targets)
    given = await score_targets(sampler, prompt, model="base", at_once=9)
    np.testing.assert_allclose(given[0], sampler.logprobs([3], None)[:300], rtol=1e-6)
    assert [len(r.parameters.extra["logprob_token_ids"]) for r in sampler.asked] == [128, 128, 44]


async def test_ids_that_the_engine_leaves_out():
    """An older engine that ignores the field is not believed."""

    class Ignoring(TokenSampler):
        def _scored(self, values, token, top, wanted):
            return super()._scored(values, token, top, None)

    prompt = TokenPrompt(tokens=TOKENS[:2], targets=np.array([[1, 2, 3]]))
    with pytest.raises(MalformedResponseError, match="token ids"):
        await score_targets(Ignoring(), prompt, model="base", at_once=9)


async def test_alternatives_have_seeds_of_their_own():
    """Seed, position and draw decide; engines count on from a request's seed."""
    sampler = TokenSampler()
    prompt = TokenPrompt(tokens=TOKENS[:3], alternatives=2, seed=10)
    drawn = await draw_alternatives(sampler, prompt, model="base", at_once=9)
    assert drawn.token_ids.tolist() == [[0, 1], [0, 1]]
    np.testing.assert_allclose(drawn.logprobs[1], sampler.logprobs([3, 1], None)[:2], rtol=1e-6)
    assert sorted(request.parameters.seed for request in sampler.asked) == [10, 12]


async def test_greedy_alternatives_are_all_the_same():
    """One request for each position is enough."""
    sampler = TokenSampler()
    prompt = TokenPrompt(tokens=TOKENS[:2], alternatives=3, temperature=0.0)
    drawn = await draw_alternatives(sampler, prompt, model="base", at_once=9)
    assert len(set(drawn.token_ids[0].tolist())) == 1
    assert sampler.asked[0].parameters.n == 1


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("target_prompt_logprobs", {"targets": np.zeros((MOST_POSITIONS + 1, 1), np.int64)}),
        ("prompt_alt_tokens_k", {"alternatives": 1}),
    ],
)
async def test_too_many_positions_are_refused_by_name(field, fields):
    """Each costs a request."""
    sampler = TokenSampler()
    prompt = TokenPrompt(tokens=np.zeros(MOST_POSITIONS + 2, np.int32), **fields)
    ask = score_targets if "targets" in fields else draw_alternatives
    with pytest.raises(TinkerError, match=field):
        await ask(sampler, prompt, model="base", at_once=9)
    assert sampler.asked == []


async def test_when_one_fails_the_others_end():
    """Nothing is left behind."""
    ended = asyncio.Event()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def failing() -> None:
        await asyncio.sleep(0)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await together([endless(), failing()])
    assert ended.is_set()
