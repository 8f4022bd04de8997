"""What every SamplingEngine promises, tried on one; the fake and the real engines pass the same."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.sampling.base import (
    LogprobScale,
    Sampled,
    SamplingEngine,
    Sequence,
    TokenPrompt,
    Weights,
)

BASE = Weights(key="base")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An engine, and what the cases need to know of its model.

    `tokens` is a prompt after which the greedy answer does not end for 12 tokens; after `ending`
    it ends at `end` within 40. `text_of` decodes tokens, and `text` is a prompt for OpenAI bodies.
    `adapters` have an effect that is larger than `tolerance`, which bounds the differences between
    two computations of the same log-probability.
    """

    engine: SamplingEngine
    tokens: NDArray[np.int32]
    ending: NDArray[np.int32]
    end: int
    text: str
    text_of: Callable[[list[int]], str]
    adapters: tuple[Weights, ...]
    logprobs: LogprobScale = "raw"
    tolerance: float = 1e-3

    async def ask(self, *, weights: Weights = BASE, **fields: Any) -> Sampled:
        """The answer to `tokens`, greedy and of at most 8 tokens by default."""
        given: dict[str, Any] = {
            "tokens": self.tokens,
            "max_tokens": 8,
            "temperature": 0.0,
        } | fields
        return await self.engine.sample(weights, TokenPrompt(**given))

    async def one(self, **fields: Any) -> Sequence:
        """The only sequence of `ask`."""
        (sequence,) = (await self.ask(**fields)).sequences
        return sequence

    async def scores(self, tokens: NDArray[np.int32], **fields: Any) -> NDArray[np.float32]:
        """The log-probabilities of a prompt's tokens."""
        given: dict[str, Any] = {
            "tokens": tokens,
            "max_tokens": 1,
            "prompt_logprobs_from": 0,
        } | fields
        scored = (await self.ask(**given)).prompt_logprobs
        assert scored is not None, "prompt log-probabilities were asked for"
        return scored

    def close(self, one: Any, other: Any) -> None:
        """Fail unless the two are the same log-probabilities."""
        np.testing.assert_allclose(one, other, atol=self.tolerance, rtol=0)


Case = Callable[[Subject], Awaitable[None]]
_cases: dict[str, Case] = {}
CASES: Mapping[str, Case] = _cases


def _case(run: Case) -> Case:
    _cases[run.__name__] = run
    return run


@_case
async def exact_ids(subject: Subject) -> None:
    """As many tokens as asked for, each with its log-probability; greedy answers repeat."""
    first, again = await subject.one(), await subject.one()
    assert first.tokens.dtype == np.int32
    assert first.logprobs.dtype == np.float32
    assert first.tokens.shape == first.logprobs.shape == (8,)
    assert not first.stopped
    assert first.tokens.tolist() == again.tokens.tolist()


@_case
async def scores_agree(subject: Subject) -> None:
    """Sampled tokens have the log-probabilities that they have in a prompt, whose first is NaN."""
    made = await subject.one()
    scores = await subject.scores(np.concatenate([subject.tokens, made.tokens]))
    assert scores.dtype == np.float32
    assert np.isnan(scores).tolist() == [True] + [False] * (len(scores) - 1)
    subject.close(scores[len(subject.tokens) :], made.logprobs)


@_case
async def scores_at_a_temperature(subject: Subject) -> None:
    """At temperature 0.7, log-probabilities are the model's own, or scaled, as was chosen."""
    made = await subject.one(temperature=0.7, seed=3, sample_top_k=2)
    raw = (await subject.scores(np.concatenate([subject.tokens, made.tokens])))[-8:]
    if subject.logprobs == "raw":
        subject.close(made.logprobs, raw)
        return
    assert float(np.abs(made.logprobs - raw).max()) > subject.tolerance
    assert made.top is not None
    best = await subject.one(max_tokens=1, sample_top_k=2)  # greedy ones are never scaled
    assert best.top is not None
    assert made.top.token_ids[0].tolist() == best.top.token_ids[0].tolist()
    gaps = [float(top.logprobs[0, 0] - top.logprobs[0, 1]) for top in (made.top, best.top)]
    subject.close(gaps[0] * 0.7, gaps[1])


@_case
async def filters_at_a_temperature(subject: Subject) -> None:
    """With top_k 1, sampling is greedy; raw log-probabilities know nothing of top_k."""
    greedy = await subject.one(max_tokens=4)
    made = await subject.one(max_tokens=4, temperature=0.7, top_k=1, seed=1)
    assert made.tokens.tolist() == greedy.tokens.tolist()
    subject.close(made.logprobs, greedy.logprobs if subject.logprobs == "raw" else 0.0)


@_case
async def stop_ids(subject: Subject) -> None:
    """A sequence ends with the first of the stop tokens, which it includes."""
    plain = (await subject.one()).tokens.tolist()
    stop = plain[3]
    made = await subject.one(stop=(stop,))
    assert made.tokens.tolist() == plain[: plain.index(stop) + 1]
    assert made.logprobs.shape == made.tokens.shape
    assert made.stopped


@_case
async def stop_strings(subject: Subject) -> None:
    """A sequence ends with the tokens of the stop string, which it includes."""
    plain = (await subject.one()).tokens.tolist()
    text = subject.text_of(plain)
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    made = await subject.one(stop=(stop,))
    ids = made.tokens.tolist()
    assert ids == plain[: len(ids)]
    assert stop in subject.text_of(ids)
    assert stop not in subject.text_of(ids[:-1])
    assert made.logprobs.shape == made.tokens.shape
    assert made.stopped


@_case
async def own_end(subject: Subject) -> None:
    """Without stops a sequence ends at the model's own end, and with an empty list nowhere."""
    made = await subject.one(tokens=subject.ending, max_tokens=40)
    assert made.tokens[-1] == subject.end
    assert made.stopped
    more = len(made.tokens) + 2
    endless = await subject.one(tokens=subject.ending, max_tokens=more, stop=())
    assert len(endless.tokens) == more
    assert endless.tokens[: len(made.tokens)].tolist() == made.tokens.tolist()
    assert not endless.stopped
    other = await subject.one(tokens=subject.ending, max_tokens=40, stop=("\x07\x07",))
    assert other.tokens.tolist() == made.tokens.tolist()


@_case
async def samples_and_seeds(subject: Subject) -> None:
    """Samples of one request differ, and a seed repeats them."""
    wanted: dict[str, Any] = {"samples": 4, "temperature": 1.0, "max_tokens": 6}
    one, again, other = await asyncio.gather(
        subject.ask(**wanted, seed=7),
        subject.ask(**wanted, seed=7),
        subject.ask(**wanted, seed=8),
    )
    texts = [tuple(s.tokens.tolist()) for s in one.sequences]
    assert len(set(texts)) > 1
    assert texts == [tuple(s.tokens.tolist()) for s in again.sequences]
    assert texts != [tuple(s.tokens.tolist()) for s in other.sequences]
    greedy = await subject.ask(samples=3)
    assert len({tuple(s.tokens.tolist()) for s in greedy.sequences}) == 1
    assert len(greedy.sequences) == 3


@_case
async def prompt_candidates(subject: Subject) -> None:
    """The most likely tokens at each prompt position, best first; the first row is empty."""
    asked = await subject.ask(max_tokens=1, prompt_logprobs_from=0, prompt_top_k=3)
    top, scores = asked.prompt_top, asked.prompt_logprobs
    assert top is not None
    assert scores is not None
    assert top.token_ids.shape == top.logprobs.shape == (len(subject.tokens), 3)
    assert top.token_ids[0].tolist() == [0, 0, 0]
    assert top.logprobs[0].tolist() == [-99999.0] * 3
    assert (np.diff(top.logprobs[1:], axis=1) <= 0).all()
    for place in range(1, len(subject.tokens)):
        (same,) = np.nonzero(top.token_ids[place] == subject.tokens[place])
        if len(same):
            subject.close(top.logprobs[place, same[0]], scores[place])
        else:
            assert scores[place] <= top.logprobs[place, -1] + subject.tolerance


@_case
async def sample_candidates(subject: Subject) -> None:
    """The most likely tokens at each sampled position, of which a greedy answer has the first."""
    made = await subject.one(sample_top_k=3, max_tokens=4)
    assert made.top is not None
    assert made.top.token_ids.shape == (4, 3)
    assert made.top.token_ids[:, 0].tolist() == made.tokens.tolist()
    subject.close(made.top.logprobs[:, 0], made.logprobs)


@_case
async def last_scores(subject: Subject) -> None:
    """Only the positions from `prompt_logprobs_from` on are scored."""
    first = len(subject.tokens) - 2
    whole = await subject.scores(subject.tokens)
    part = await subject.ask(max_tokens=1, prompt_logprobs_from=first, prompt_top_k=1)
    assert part.prompt_logprobs is not None
    assert part.prompt_top is not None
    assert np.isnan(part.prompt_logprobs[:first]).all()
    assert part.prompt_top.logprobs[:first].tolist() == [[-99999.0]] * first
    assert (part.prompt_top.logprobs[first:] <= 0).all()
    assert (part.prompt_top.logprobs[first:] > -99999.0).all()
    subject.close(part.prompt_logprobs[first:], whole[first:])


@_case
async def targets(subject: Subject) -> None:
    """Any ids can be scored at any prompt position after the first; -1 asks for nothing."""
    tokens = subject.tokens[:5]
    wanted = np.full((4, 3), -1, np.int64)
    wanted[0, 0], wanted[2] = tokens[1], (tokens[3], 5, 9)
    weights = subject.adapters[0]
    asked = await subject.ask(tokens=tokens, targets=wanted, max_tokens=1, weights=weights)
    scores = await subject.scores(tokens, weights=weights)
    given = asked.target_logprobs
    assert given is not None
    assert given.dtype == np.float32
    subject.close([given[0, 0], given[2, 0]], [scores[1], scores[3]])
    assert (given[2] < 0).all()
    assert given[1].tolist() == given[3].tolist() == [0.0, 0.0, 0.0]
    assert given[0, 1:].tolist() == [0.0, 0.0]


@_case
async def alternatives(subject: Subject) -> None:
    """Tokens are drawn at each prompt position after the first, with their log-probabilities."""
    tokens = subject.tokens[:4]
    asked = await subject.ask(tokens=tokens, alternatives=3, temperature=1.0, seed=5, max_tokens=1)
    drawn = asked.alternatives
    assert drawn is not None
    assert drawn.token_ids.shape == drawn.logprobs.shape == (3, 3)
    wanted = drawn.token_ids.astype(np.int64)
    given = (await subject.ask(tokens=tokens, targets=wanted, max_tokens=1)).target_logprobs
    if subject.logprobs == "raw":
        subject.close(drawn.logprobs, given)
    assert len(set(drawn.token_ids.ravel().tolist())) > 1


@_case
async def adapters(subject: Subject) -> None:
    """Each of the adapters answers for itself and beside the others, and the base as before."""
    every = (BASE, *subject.adapters)
    await asyncio.gather(*(subject.engine.prepare(weights) for weights in every))
    await subject.engine.prepare(every[-1])
    alone = [await subject.scores(subject.tokens, weights=weights) for weights in every]
    for one, other in itertools.pairwise(alone):
        assert float(np.abs(one[1:] - other[1:]).max()) > 10 * subject.tolerance
    made = await asyncio.gather(
        *(subject.one(weights=weights, max_tokens=4) for weights in every for _ in range(3))
    )
    for place, weights in enumerate(every):
        mine = made[3 * place : 3 * place + 3]
        again = await subject.one(weights=weights, max_tokens=4)
        for sequence in mine:
            subject.close(sequence.logprobs[0], again.logprobs[0])
    subject.close((await subject.scores(subject.tokens))[1:], alone[0][1:])
    await subject.engine.forget(every[-1])
    await subject.engine.forget(every[-1])
    subject.close((await subject.scores(subject.tokens, weights=every[-1]))[1:], alone[-1][1:])


@_case
async def fills_the_context(subject: Subject) -> None:
    """Without max_tokens a sequence has as many tokens as fit; the longest prompt can be scored."""
    most = subject.engine.max_length
    long = np.resize(subject.tokens, most - 3)
    made = await subject.one(tokens=long, max_tokens=None, stop=())
    assert len(made.tokens) == 3
    full = np.resize(subject.tokens, most)
    assert len(await subject.scores(full)) == most


@_case
async def refusals(subject: Subject) -> None:
    """What the request is to blame for is an error of the user's, and harms nobody else."""
    most = subject.engine.max_length
    for wrong in (
        {"tokens": np.array([], np.int32)},
        {"tokens": np.array([2**30], np.int32)},
        {"tokens": np.resize(subject.tokens, most + 1)},
        {"max_tokens": most},
    ):
        assert await _blamed(subject.ask(**wrong)) == "user", f"{wrong} was answered"
    await subject.one()


async def _blamed(asking: Awaitable[Sampled]) -> str | None:
    try:
        await asking
    except TinkerError as error:
        return error.category
    return None


@_case
async def openai_bodies(subject: Subject) -> None:
    """An OpenAI body is answered by the weights that were asked for, whole or as events."""
    answers = []
    for weights in (BASE, subject.adapters[0]):
        body = {"model": "any", "prompt": subject.text, "max_tokens": 5, "temperature": 0}
        reply = await subject.engine.complete(weights, "/v1/completions", body)
        assert reply["model"] == "any"
        streamed = b""
        async for part in await subject.engine.stream(
            weights, "/v1/completions", body | {"stream": True}
        ):
            streamed += part
        assert streamed.rstrip().endswith(b"data: [DONE]")
        assert streamed.count(b"data: ") > 2
        answers.append(reply["choices"][0]["text"])
    assert answers[0] != answers[1]
