"""What every engine must do, as named cases over a Sampler.

The fake engine and the real vLLM both pass; a new engine's adapter is done when it does. Cases
that need a capability which the sampler does not declare are skipped, and say so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Literal

import msgspec

from enginehouse.core.errors import (
    ContextOverflowError,
    UnknownModelError,
    UnsupportedError,
    WireError,
)
from enginehouse.core.messages import ChatPrompt, Message, Prompt, TextPrompt, TokenPrompt
from enginehouse.core.sampler import (
    Capability,
    Delta,
    Sampler,
    SampleRequest,
    SampleResponse,
)
from enginehouse.core.sampling import SamplingParameters, StructuredOutput

CHAT = ChatPrompt((Message("user", "What is the capital of France?"),))
TEXT = "Once upon a time, in a small house by the sea,"
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
_TOO_LONG = 2**20


class Case(msgspec.Struct, frozen=True):
    """One promise, and the capabilities without which it means nothing."""

    promise: str
    needs: frozenset[Capability]
    run: Callable[[Sampler], Awaitable[None]]


class CaseResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a case; `detail` says what went wrong, or what was lacking."""

    name: str
    outcome: Literal["passed", "failed", "skipped"]
    detail: str = ""
    seconds: float = 0.0


_cases: dict[str, Case] = {}
CASES: Mapping[str, Case] = _cases


async def check(sampler: Sampler, *, only: Collection[str] | None = None) -> list[CaseResult]:
    """Run the cases (or those named) one after another; a failing case never raises."""
    return [
        await _check(name, case, sampler)
        for name, case in CASES.items()
        if only is None or name in only
    ]


async def _check(name: str, case: Case, sampler: Sampler) -> CaseResult:
    if lacking := case.needs - sampler.capabilities.supports:
        return CaseResult(name=name, outcome="skipped", detail=f"lacks {', '.join(lacking)}")
    begun = time.perf_counter()
    try:
        await case.run(sampler)
    except (AssertionError, WireError) as error:
        detail = f"{case.promise}: {error}"
        seconds = time.perf_counter() - begun
        return CaseResult(name=name, outcome="failed", detail=detail, seconds=seconds)
    return CaseResult(name=name, outcome="passed", seconds=time.perf_counter() - begun)


def _case(
    *needs: Capability,
) -> Callable[[Callable[[Sampler], Awaitable[None]]], Callable[[Sampler], Awaitable[None]]]:
    def register(run: Callable[[Sampler], Awaitable[None]]) -> Callable[[Sampler], Awaitable[None]]:
        promise = (run.__doc__ or "").strip().rstrip(".")
        _cases[run.__name__] = Case(promise, frozenset(needs), run)
        return run

    return register


def _ask(prompt: Prompt, **parameters: Any) -> SampleRequest:
    return SampleRequest(
        prompt=prompt, parameters=SamplingParameters(**{"max_tokens": 16} | parameters)
    )


def _same(first: object, second: object) -> None:
    assert first == second, f"{first!r} is not {second!r}"


def _texts(response: SampleResponse) -> list[str]:
    return [completion.text for completion in response.completions]


@_case(Capability.CHAT)
async def chat(sampler: Sampler) -> None:
    """A conversation is answered, with token counts, a model and a reason for the end."""
    response = await sampler.sample(_ask(CHAT))
    (completion,) = response.completions
    assert completion.text.strip(), "the answer is empty"
    assert completion.finish_reason in ("stop", "length"), completion.finish_reason
    assert response.prompt_tokens > 0, "no prompt tokens were counted"
    assert response.completion_tokens > 0, "no completion tokens were counted"
    assert response.model, "the reply names no model"


@_case(Capability.TEXT)
async def text(sampler: Sampler) -> None:
    """A text is continued."""
    response = await sampler.sample(_ask(TextPrompt(TEXT)))
    assert response.completions[0].text.strip(), "the continuation is empty"


@_case(Capability.TOKENS, Capability.TEXT, Capability.TOKENIZE)
async def tokens(sampler: Sampler) -> None:
    """Token ids are continued as the text that they stand for."""
    ids = await sampler.tokenize(TEXT)
    by_ids = await sampler.sample(_ask(TokenPrompt(ids), max_tokens=4))
    by_text = await sampler.sample(_ask(TextPrompt(TEXT), max_tokens=4))
    _same(_texts(by_ids), _texts(by_text))
    _same(by_ids.prompt_tokens, len(ids))


@_case(Capability.TOKENIZE, Capability.TEXT, Capability.TOKEN_IDS)
async def tokenize_round_trip(sampler: Sampler) -> None:
    """The ids of /tokenize are those that the engine says it was prompted with."""
    response = await sampler.sample(_ask(TextPrompt(TEXT), max_tokens=1))
    _same(response.prompt_token_ids, await sampler.tokenize(TEXT))


@_case(Capability.CHAT, Capability.TOKEN_IDS)
async def token_ids(sampler: Sampler) -> None:
    """Every generated token's id comes back, and the counts agree with them."""
    response = await sampler.sample(_ask(CHAT))
    (completion,) = response.completions
    assert completion.token_ids is not None, "no token ids came"
    assert response.prompt_token_ids is not None, "no prompt token ids came"
    _same(len(completion.token_ids), response.completion_tokens)
    _same(len(response.prompt_token_ids), response.prompt_tokens)


@_case(Capability.CHAT, Capability.N)
async def n(sampler: Sampler) -> None:
    """N gives as many answers, in order, and not all the same."""
    response = await sampler.sample(_ask(CHAT, n=4, temperature=1.0))
    _same(len(response.completions), 4)
    assert len(set(_texts(response))) > 1, "four samples at temperature 1 are all the same"


@_case(Capability.CHAT)
async def stop(sampler: Sampler) -> None:
    """A stop string ends the answer before itself."""
    whole = (await sampler.sample(_ask(CHAT))).completions[0].text
    wanted = whole.split()[1]
    response = await sampler.sample(_ask(CHAT, stop=(wanted,)))
    _same(response.completions[0].text, whole[: whole.index(wanted)])
    _same(response.completions[0].finish_reason, "stop")


@_case(Capability.CHAT, Capability.SEED)
async def seed(sampler: Sampler) -> None:
    """The same seed gives the same answer, and some other seed another."""

    async def answer(number: int) -> list[str]:
        return _texts(await sampler.sample(_ask(CHAT, temperature=1.0, seed=number)))

    _same(await answer(7), await answer(7))
    others = [await answer(number) for number in range(1, 5)]
    assert any(other != others[0] for other in others), "four seeds gave the same answer"


@_case(Capability.CHAT)
async def greedy(sampler: Sampler) -> None:
    """Temperature 0 gives the same answer twice."""
    first = await sampler.sample(_ask(CHAT))
    _same(_texts(first), _texts(await sampler.sample(_ask(CHAT))))


@_case(Capability.CHAT, Capability.SEED)
async def greedy_ignores_seed(sampler: Sampler) -> None:
    """Temperature 0 gives the same answer whatever the seed."""
    first = await sampler.sample(_ask(CHAT, seed=1))
    _same(_texts(first), _texts(await sampler.sample(_ask(CHAT, seed=2))))


@_case(Capability.CHAT, Capability.LOGPROBS)
async def chat_logprobs(sampler: Sampler) -> None:
    """Every token of a chat answer has its log-probability, and as many candidates as asked."""
    _check_logprobs(await sampler.sample(_ask(CHAT, logprobs=2, max_tokens=4)), top=2)


@_case(Capability.TEXT, Capability.LOGPROBS)
async def text_logprobs(sampler: Sampler) -> None:
    """Every token of a continuation has its log-probability; 0 asks for no candidates."""
    _check_logprobs(await sampler.sample(_ask(TextPrompt(TEXT), logprobs=2, max_tokens=4)), top=2)
    _check_logprobs(await sampler.sample(_ask(TextPrompt(TEXT), logprobs=0, max_tokens=4)), top=0)


def _check_logprobs(response: SampleResponse, *, top: int) -> None:
    (completion,) = response.completions
    assert completion.logprobs is not None, "no logprobs came"
    _same(len(completion.logprobs), response.completion_tokens)
    for token in completion.logprobs:
        assert token.logprob <= 0, f"{token.text!r} has log-probability {token.logprob}"
        _same(len(token.top), top)
        values = [candidate.logprob for candidate in token.top]
        _same(values, sorted(values, reverse=True))


@_case(Capability.TEXT, Capability.PROMPT_LOGPROBS, Capability.TOKENIZE)
async def prompt_logprobs(sampler: Sampler) -> None:
    """Every prompt token but the first has its own log-probability, with and without candidates."""
    ids = await sampler.tokenize(TEXT)
    plain = await sampler.sample(_ask(TextPrompt(TEXT), prompt_logprobs=0, max_tokens=1))
    ranked = await sampler.sample(_ask(TextPrompt(TEXT), prompt_logprobs=3, max_tokens=1))
    assert plain.prompt_logprobs is not None, "no prompt logprobs came"
    assert ranked.prompt_logprobs is not None, "no prompt logprobs came"
    _same(len(plain.prompt_logprobs), len(ids))
    assert plain.prompt_logprobs[0] is None, "the first token has a log-probability"
    pairs = zip(ids[1:], plain.prompt_logprobs[1:], ranked.prompt_logprobs[1:], strict=True)
    for token_id, one, other in pairs:
        assert one is not None, f"token {token_id} has no log-probability"
        assert other is not None, f"token {token_id} has no log-probability"
        _same((one.token_id, other.token_id), (token_id, token_id))
        assert abs(one.logprob - other.logprob) < 0.3, f"{one.logprob} and {other.logprob} differ"
        _same(len(other.top), 3)


@_case(
    Capability.TOKENS,
    Capability.TOKENIZE,
    Capability.TOKEN_IDS,
    Capability.LOGPROBS,
    Capability.PROMPT_LOGPROBS,
)
async def logprobs_agree(sampler: Sampler) -> None:
    """An answer's log-probabilities are those of the same tokens when they are the prompt."""
    ids = await sampler.tokenize(TEXT)
    made = (await sampler.sample(_ask(TokenPrompt(ids), logprobs=0, max_tokens=4))).completions[0]
    assert made.token_ids is not None, "no token ids came"
    assert made.logprobs is not None, "no logprobs came"
    whole = TokenPrompt((*ids, *made.token_ids))
    again = await sampler.sample(_ask(whole, prompt_logprobs=0, max_tokens=1))
    assert again.prompt_logprobs is not None, "no prompt logprobs came"
    for one, other in zip(made.logprobs, again.prompt_logprobs[len(ids) :], strict=True):
        assert other is not None, "a token has no log-probability"
        assert abs(one.logprob - other.logprob) < 0.3, f"{one.logprob} and {other.logprob} differ"


@_case(Capability.CHAT, Capability.CHOICE)
async def structured_choice(sampler: Sampler) -> None:
    """A choice constrains the answer to one of its texts."""
    structured = StructuredOutput(choice=("zebra", "otter"))
    response = await sampler.sample(_ask(CHAT, structured=structured))
    assert response.completions[0].text in ("zebra", "otter"), response.completions[0].text


@_case(Capability.CHAT, Capability.JSON_SCHEMA)
async def structured_json(sampler: Sampler) -> None:
    """A JSON schema constrains the answer to an instance of it."""
    structured = StructuredOutput(json_schema=_SCHEMA)
    response = await sampler.sample(_ask(CHAT, structured=structured, max_tokens=64))
    written = response.completions[0].text
    try:
        value = json.loads(written)
    except ValueError:
        raise AssertionError(f"{written!r} is not JSON") from None
    assert value in ({"city": "Paris"}, {"city": "Rome"}), written


@_case(Capability.CHAT, Capability.STREAM)
async def stream_chat(sampler: Sampler) -> None:
    """A streamed chat answer is the one that comes whole."""
    await _check_stream(sampler, _ask(CHAT))


@_case(Capability.TEXT, Capability.STREAM)
async def stream_text(sampler: Sampler) -> None:
    """A streamed continuation is the one that comes whole."""
    await _check_stream(sampler, _ask(TextPrompt(TEXT)))


async def _check_stream(sampler: Sampler, request: SampleRequest) -> None:
    whole = (await sampler.sample(request)).completions[0]
    deltas: list[Delta] = [delta async for delta in sampler.stream(request)]
    _same("".join(delta.text for delta in deltas), whole.text)
    _same([d.finish_reason for d in deltas if d.finish_reason], [whole.finish_reason])
    if whole.token_ids is not None:
        _same(tuple(token for delta in deltas for token in delta.token_ids or ()), whole.token_ids)


@_case(Capability.CHAT)
async def max_tokens(sampler: Sampler) -> None:
    """An answer that max_tokens cuts off says so."""
    response = await sampler.sample(_ask(CHAT, max_tokens=2))
    _same(response.completions[0].finish_reason, "length")
    _same(response.completion_tokens, 2)


@_case(Capability.TEXT, Capability.IGNORE_EOS)
async def ignore_eos(sampler: Sampler) -> None:
    """With ignore_eos an answer has exactly max_tokens tokens."""
    response = await sampler.sample(_ask(TextPrompt(TEXT), max_tokens=100, ignore_eos=True))
    _same(response.completion_tokens, 100)


@_case(Capability.CHAT)
async def unknown_model(sampler: Sampler) -> None:
    """A model that is not served is an UnknownModelError."""
    request = SampleRequest(prompt=CHAT, model="no-such-model")
    await _raises(sampler, request, UnknownModelError)


@_case(Capability.CHAT)
async def context_overflow(sampler: Sampler) -> None:
    """A prompt, or a max_tokens, beyond the context is a ContextOverflowError."""
    endless = ChatPrompt((Message("user", "again " * _TOO_LONG),))
    await _raises(sampler, _ask(endless), ContextOverflowError)
    await _raises(sampler, _ask(CHAT, max_tokens=10 * _TOO_LONG), ContextOverflowError)


@_case(Capability.CHAT)
async def ignored_fields_refused(sampler: Sampler) -> None:
    """Fields that the engine would silently ignore are refused before they are sent."""
    for name, instead in sampler.capabilities.ignored.items():
        error = await _raises(sampler, _ask(CHAT, extra={name: {}}), UnsupportedError)
        assert name in str(error), f"{error} does not name {name}"
        assert instead in str(error), f"{error} does not say what to use instead"


@_case()
async def undeclared_refused(sampler: Sampler) -> None:
    """What the sampler does not declare is refused before it is sent, never silently dropped."""
    asks: dict[Capability, SampleRequest] = {
        Capability.CHAT: _ask(CHAT),
        Capability.TEXT: _ask(TextPrompt(TEXT)),
        Capability.TOKENS: _ask(TokenPrompt((1, 2))),
        Capability.N: _ask(CHAT, n=2, temperature=1.0),
        Capability.SEED: _ask(CHAT, seed=1),
        Capability.TOP_K: _ask(CHAT, top_k=5),
        Capability.MIN_P: _ask(CHAT, min_p=0.1),
        Capability.REPETITION_PENALTY: _ask(CHAT, repetition_penalty=1.1),
        Capability.IGNORE_EOS: _ask(CHAT, ignore_eos=True),
        Capability.LOGPROBS: _ask(CHAT, logprobs=1),
        Capability.PROMPT_LOGPROBS: _ask(CHAT, prompt_logprobs=0),
        Capability.CHOICE: _ask(CHAT, structured=StructuredOutput(choice=("a",))),
        Capability.REGEX: _ask(CHAT, structured=StructuredOutput(regex="a")),
        Capability.GRAMMAR: _ask(CHAT, structured=StructuredOutput(grammar="root ::= 'a'")),
        Capability.JSON_SCHEMA: _ask(CHAT, structured=StructuredOutput(json_schema=_SCHEMA)),
    }
    for capability, request in asks.items():
        if capability not in sampler.capabilities.supports:
            await _raises(sampler, request, UnsupportedError)


async def _raises(sampler: Sampler, request: SampleRequest, wanted: type[WireError]) -> WireError:
    try:
        response = await sampler.sample(request)
    except wanted as error:
        return error
    except WireError as error:
        raise AssertionError(
            f"{type(error).__name__} instead of {wanted.__name__}: {error}"
        ) from None
    raise AssertionError(f"{wanted.__name__} was not raised; the answer was {_texts(response)}")
