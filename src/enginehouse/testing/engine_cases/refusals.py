"""Cases about refusals, by the engine or before anything is sent."""

from __future__ import annotations

from enginehouse.core.errors import ContextOverflowError, UnknownModelError, UnsupportedError
from enginehouse.core.messages import ChatPrompt, Message, Prompt, TextPrompt, TokenPrompt
from enginehouse.core.sampler import Capability, Delta, SampleRequest
from enginehouse.core.sampling import StructuredOutput
from enginehouse.core.tool_calls import ToolDefinition
from enginehouse.testing.engine_cases.base import (
    CHAT,
    CITY,
    TEXT,
    Subject,
    case,
    raises,
    request_of,
)

_TOO_LONG = 2**20
_TOOL = ToolDefinition(name="visit", description="Visit a city.", parameters=CITY)


@case()
async def unknown_model(subject: Subject) -> None:
    """A model that is not served is an UnknownModelError."""
    request = SampleRequest(prompt=subject.prompt, model="no-such-model")
    await raises(subject.sampler.sample(request), UnknownModelError)


@case()
async def context_overflow(subject: Subject) -> None:
    """A prompt beyond the context is a ContextOverflowError."""
    text = "again " * _TOO_LONG
    chats = Capability.CHAT in subject.sampler.capabilities.supports
    endless: Prompt = ChatPrompt((Message("user", text),)) if chats else TextPrompt(text)
    await raises(subject.ask(endless), ContextOverflowError)


@case()
async def max_tokens_overflow(subject: Subject) -> None:
    """A max_tokens beyond the context is a ContextOverflowError."""
    await raises(subject.ask(max_tokens=10 * _TOO_LONG), ContextOverflowError)


@case()
async def ignored_fields_refused(subject: Subject) -> None:
    """Fields that the engine would silently ignore are refused before they are sent."""
    for name, instead in subject.sampler.capabilities.ignored.items():
        error = await raises(subject.ask(extra={name: {}}), UnsupportedError)
        assert name in str(error), f"{error} does not name {name}"
        assert instead in str(error), f"{error} does not say what to use instead"


@case()
async def undeclared_refused(subject: Subject) -> None:
    """What the sampler does not declare is refused before it is sent."""
    sampler = subject.sampler
    lacking = set(Capability) - sampler.capabilities.supports
    for capability, request in _requests(subject).items():
        if capability in lacking:
            await raises(sampler.sample(request), UnsupportedError)
    if Capability.STREAM in lacking:
        await raises(_streamed(subject), UnsupportedError)
    if Capability.TOKENIZE in lacking:
        await raises(sampler.tokenize(TEXT), UnsupportedError)


def _requests(subject: Subject) -> dict[Capability, SampleRequest]:
    """A request for each capability that needs nothing else."""
    ask = subject.request
    return {
        Capability.CHAT: request_of(CHAT),
        Capability.TEXT: request_of(TextPrompt(TEXT)),
        Capability.TOKENS: request_of(TokenPrompt((1, 2))),
        Capability.N: ask(n=2, temperature=1.0),
        Capability.SEED: ask(seed=1),
        Capability.TOP_K: ask(top_k=5),
        Capability.MIN_P: ask(min_p=0.1),
        Capability.REPETITION_PENALTY: ask(repetition_penalty=1.1),
        Capability.IGNORE_EOS: ask(ignore_eos=True),
        Capability.LOGPROBS: ask(logprobs=1),
        Capability.PROMPT_LOGPROBS: ask(prompt_logprobs=0),
        Capability.CHOICE: ask(structured=StructuredOutput(choice=("a",))),
        Capability.REGEX: ask(structured=StructuredOutput(regex="a")),
        Capability.GRAMMAR: ask(structured=StructuredOutput(grammar="root ::= 'a'")),
        Capability.JSON_SCHEMA: ask(structured=StructuredOutput(json_schema=CITY)),
        Capability.TOOLS: SampleRequest(prompt=subject.prompt, tools=(_TOOL,)),
    }


async def _streamed(subject: Subject) -> list[Delta]:
    return [delta async for delta in subject.sampler.stream(subject.request())]
