"""Cases about answers: to each kind of prompt, by each parameter, whole and streamed."""

from __future__ import annotations

from typing import Any

import msgspec

from enginehouse.core.errors import UnknownModelError
from enginehouse.core.messages import ChatPrompt, Message, Prompt, TextPrompt, TokenPrompt
from enginehouse.core.sampler import Capability, Delta, SampleRequest
from enginehouse.testing.engine_cases.base import (
    CHAT,
    TEXT,
    Inapplicable,
    Subject,
    case,
    raises,
    same,
    texts,
)


@case(Capability.CHAT)
async def chat(subject: Subject) -> None:
    """A conversation is answered, with token counts, a model and a reason for the end."""
    response = await subject.ask(CHAT)
    (completion,) = response.completions
    assert completion.text.strip(), "the answer is empty"
    assert completion.finish_reason in ("stop", "length"), completion.finish_reason
    assert response.prompt_tokens > 0, "no prompt tokens were counted"
    assert response.completion_tokens > 0, "no completion tokens were counted"
    assert response.model, "the reply names no model"


@case(Capability.TEXT)
async def text(subject: Subject) -> None:
    """A text is continued."""
    response = await subject.ask(TextPrompt(TEXT))
    assert response.completions[0].text.strip(), "the continuation is empty"


@case(Capability.TOKENS, Capability.TEXT, Capability.TOKENIZE)
async def tokens(subject: Subject) -> None:
    """Token ids are continued as the text that they stand for."""
    ids = await subject.sampler.tokenize(TEXT)
    by_ids = await subject.ask(TokenPrompt(ids), max_tokens=4)
    by_text = await subject.ask(TextPrompt(TEXT), max_tokens=4)
    same(texts(by_ids), texts(by_text))
    same(by_ids.prompt_tokens, len(ids))


@case(Capability.TOKENIZE, Capability.TEXT, Capability.TOKEN_IDS)
async def tokenize_round_trip(subject: Subject) -> None:
    """The ids of /tokenize are those that the engine reports for the prompt."""
    response = await subject.ask(TextPrompt(TEXT), max_tokens=1)
    same(response.prompt_token_ids, await subject.sampler.tokenize(TEXT))


@case(Capability.TOKEN_IDS)
async def token_ids(subject: Subject) -> None:
    """Every generated token's id comes back, and the counts agree with them."""
    response = await subject.ask()
    (completion,) = response.completions
    assert completion.token_ids is not None, "the reply has no token ids"
    assert response.prompt_token_ids is not None, "the reply has no prompt token ids"
    same(len(completion.token_ids), response.completion_tokens)
    same(len(response.prompt_token_ids), response.prompt_tokens)


@case(Capability.N)
async def n(subject: Subject) -> None:
    """N=4 returns four answers, in order, and not all the same."""
    response = await subject.ask(n=4, temperature=1.0)
    same(len(response.completions), 4)
    assert len(set(texts(response))) > 1, "four samples at temperature 1 are all the same"


@case()
async def stop(subject: Subject) -> None:
    """A stop string ends the answer before itself."""
    whole = (await subject.ask()).completions[0].text
    words = whole.split()
    wanted = words[1] if len(words) > 1 else whole[len(whole) // 2 :]
    response = await subject.ask(stop=(wanted,))
    same(response.completions[0].text, whole[: whole.index(wanted)])
    same(response.completions[0].finish_reason, "stop")


@case(Capability.SEED)
async def seed(subject: Subject) -> None:
    """The same seed gives the same answer, and another seed a different one."""

    async def answer(number: int) -> list[str]:
        return texts(await subject.ask(temperature=1.0, seed=number))

    same(await answer(7), await answer(7))
    others = [await answer(number) for number in range(1, 5)]
    assert any(other != others[0] for other in others), "four seeds gave the same answer"


@case()
async def greedy(subject: Subject) -> None:
    """Temperature 0 gives the same answer twice."""
    same(texts(await subject.ask()), texts(await subject.ask()))


@case(Capability.SEED)
async def greedy_ignores_seed(subject: Subject) -> None:
    """Temperature 0 gives the same answer whatever the seed."""
    same(texts(await subject.ask(seed=1)), texts(await subject.ask(seed=2)))


@case(Capability.TOP_K)
async def top_k(subject: Subject) -> None:
    """With top_k 1 every seed gives the greedy answer, even at temperature 1."""
    await _check_narrowed(subject, top_k=1)


@case(Capability.MIN_P)
async def min_p(subject: Subject) -> None:
    """With min_p 1 every seed gives the greedy answer, even at temperature 1."""
    await _check_narrowed(subject, min_p=1.0)


async def _check_narrowed(subject: Subject, **narrow: Any) -> None:
    seeded = Capability.SEED in subject.sampler.capabilities.supports

    async def answers(**filters: Any) -> list[str]:
        hot = {"temperature": 1.0} | filters
        seeds = range(4) if seeded else [None] * 4
        return [texts(await subject.ask(**hot, seed=seed))[0] for seed in seeds]

    wanted = texts(await subject.ask())
    same(await answers(**narrow), wanted * 4)
    if set(await answers()) == set(wanted):
        raise Inapplicable("every answer is the greedy one, whatever is asked")


@case(Capability.REPETITION_PENALTY)
async def repetition_penalty(subject: Subject) -> None:
    """A repetition penalty changes an answer that would repeat the prompt."""
    again = " ".join(["again"] * 20)
    plain = Capability.TEXT in subject.sampler.capabilities.supports
    prompt: Prompt = TextPrompt(again) if plain else ChatPrompt((Message("user", again),))
    repeated = texts(await subject.ask(prompt))
    penalised = texts(await subject.ask(prompt, repetition_penalty=2.0))
    assert penalised != repeated, f"with and without it: {repeated}"


@case()
async def max_tokens(subject: Subject) -> None:
    """An answer that max_tokens cuts off says so."""
    response = await subject.ask(max_tokens=2)
    same(response.completions[0].finish_reason, "length")
    same(response.completion_tokens, 2)


@case(Capability.TEXT, Capability.IGNORE_EOS)
async def ignore_eos(subject: Subject) -> None:
    """With ignore_eos an answer has exactly max_tokens tokens."""
    response = await subject.ask(TextPrompt(TEXT), max_tokens=100, ignore_eos=True)
    same(response.completion_tokens, 100)


@case(Capability.CHAT, Capability.STREAM)
async def stream_chat(subject: Subject) -> None:
    """A streamed chat answer equals the one that is not streamed."""
    await _check_stream(subject, subject.request(CHAT))


@case(Capability.TEXT, Capability.STREAM)
async def stream_text(subject: Subject) -> None:
    """A streamed continuation equals the one that is not streamed."""
    await _check_stream(subject, subject.request(TextPrompt(TEXT)))


async def _check_stream(subject: Subject, request: SampleRequest) -> None:
    whole = (await subject.sampler.sample(request)).completions[0]
    deltas: list[Delta] = [delta async for delta in subject.sampler.stream(request)]
    same("".join(delta.text for delta in deltas), whole.text)
    same([d.finish_reason for d in deltas if d.finish_reason], [whole.finish_reason])
    if whole.token_ids is not None:
        same(tuple(token for delta in deltas for token in delta.token_ids or ()), whole.token_ids)


@case(Capability.ADAPTERS)
async def adapter(subject: Subject) -> None:
    """A loaded LoRA adapter answers to its name; one that is not loaded is an UnknownModelError."""
    request = subject.request()
    loaded = msgspec.structs.replace(request, model=subject.adapter)
    response = await subject.sampler.sample(loaded)
    assert response.completions[0].text.strip(), "the adapter's answer is empty"
    absent = msgspec.structs.replace(request, model=f"{subject.adapter}-not-loaded")
    await raises(subject.sampler.sample(absent), UnknownModelError)
