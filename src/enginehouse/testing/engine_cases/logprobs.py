"""Cases about log-probabilities."""

from __future__ import annotations

from enginehouse.core.messages import TextPrompt, TokenPrompt
from enginehouse.core.sampler import Capability, SampleResponse
from enginehouse.testing.engine_cases.base import CHAT, TEXT, Subject, case, same


@case(Capability.CHAT, Capability.LOGPROBS)
async def chat_logprobs(subject: Subject) -> None:
    """Every token of a chat answer has its log-probability and the requested candidates."""
    top = _candidates(subject)
    _check_logprobs(await subject.ask(CHAT, logprobs=top, max_tokens=4), top=top)


@case(Capability.TEXT, Capability.LOGPROBS)
async def text_logprobs(subject: Subject) -> None:
    """Every token of a continuation has its log-probability; 0 asks for no candidates."""
    top = _candidates(subject)
    _check_logprobs(await subject.ask(TextPrompt(TEXT), logprobs=top, max_tokens=4), top=top)
    _check_logprobs(await subject.ask(TextPrompt(TEXT), logprobs=0, max_tokens=4), top=0)


def _candidates(subject: Subject) -> int:
    """Two, or fewer if the engine gives fewer."""
    most = subject.sampler.capabilities.most_logprobs
    return 2 if most is None else min(2, most)


def _check_logprobs(response: SampleResponse, *, top: int) -> None:
    (completion,) = response.completions
    assert completion.logprobs is not None, "the reply has no logprobs"
    same(len(completion.logprobs), response.completion_tokens)
    for token in completion.logprobs:
        assert token.logprob <= 0, f"{token.text!r} has log-probability {token.logprob}"
        same(len(token.top), top)
        values = [candidate.logprob for candidate in token.top]
        same(values, sorted(values, reverse=True))


@case(Capability.TEXT, Capability.PROMPT_LOGPROBS, Capability.TOKENIZE)
async def prompt_logprobs(subject: Subject) -> None:
    """Every prompt token but the first has its own log-probability, with and without candidates."""
    ids = await subject.sampler.tokenize(TEXT)
    plain = await subject.ask(TextPrompt(TEXT), prompt_logprobs=0, max_tokens=1)
    ranked = await subject.ask(TextPrompt(TEXT), prompt_logprobs=3, max_tokens=1)
    assert plain.prompt_logprobs is not None, "the reply has no prompt logprobs"
    assert ranked.prompt_logprobs is not None, "the reply has no prompt logprobs"
    same(len(plain.prompt_logprobs), len(ids))
    assert plain.prompt_logprobs[0] is None, "the first token has a log-probability"
    pairs = zip(ids[1:], plain.prompt_logprobs[1:], ranked.prompt_logprobs[1:], strict=True)
    for token_id, one, other in pairs:
        assert one is not None, f"token {token_id} has no log-probability"
        assert other is not None, f"token {token_id} has no log-probability"
        same((one.token_id, other.token_id), (token_id, token_id))
        assert abs(one.logprob - other.logprob) < 0.3, f"{one.logprob} and {other.logprob} differ"
        same(len(other.top), 3)


@case(
    Capability.TOKENS,
    Capability.TOKENIZE,
    Capability.TOKEN_IDS,
    Capability.LOGPROBS,
    Capability.PROMPT_LOGPROBS,
)
async def logprobs_agree(subject: Subject) -> None:
    """An answer's log-probabilities are those of the same tokens when they are the prompt."""
    ids = await subject.sampler.tokenize(TEXT)
    made = (await subject.ask(TokenPrompt(ids), logprobs=0, max_tokens=4)).completions[0]
    assert made.token_ids is not None, "the reply has no token ids"
    assert made.logprobs is not None, "the reply has no logprobs"
    whole = TokenPrompt((*ids, *made.token_ids))
    again = await subject.ask(whole, prompt_logprobs=0, max_tokens=1)
    assert again.prompt_logprobs is not None, "the reply has no prompt logprobs"
    for one, other in zip(made.logprobs, again.prompt_logprobs[len(ids) :], strict=True):
        assert other is not None, "a token has no log-probability"
        assert abs(one.logprob - other.logprob) < 0.3, f"{one.logprob} and {other.logprob} differ"
