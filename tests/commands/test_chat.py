"""A conversation: what stays of it when an answer is stopped, fails, or no longer fits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from enginehouse.commands.chat import Conversation
from enginehouse.commands.configuration import ChatSettings
from enginehouse.core.errors import (
    ConnectionFailedError,
    ContextOverflowError,
    UnsupportedError,
    WireError,
)
from enginehouse.core.messages import ChatPrompt, Message
from enginehouse.core.sampler import (
    Capabilities,
    Capability,
    Completion,
    Delta,
    SampleRequest,
    SampleResponse,
    Timing,
)

BOTH = (Capability.CHAT, Capability.STREAM)


class Talker:
    """Answers with the number of messages it was told, in two pieces."""

    def __init__(self, *supports: Capability) -> None:
        self.capabilities = Capabilities(supports=frozenset(supports))
        self.requests: list[SampleRequest] = []
        self.failure: WireError | None = None
        self.stalls = False

    async def sample(self, request: SampleRequest) -> SampleResponse:
        """All at once."""
        self.requests.append(request)
        return SampleResponse(
            completions=(Completion(text=said(request), finish_reason="length"),),
            model="m",
            request_id="1",
            prompt_tokens=1,
            completion_tokens=1,
            timing=Timing(started=0, elapsed=0),
        )

    async def stream(self, request: SampleRequest) -> AsyncIterator[Delta]:
        """In two pieces."""
        self.requests.append(request)
        if self.failure is not None:
            raise self.failure
        yield Delta(text=said(request))
        if self.stalls:
            await asyncio.Event().wait()
        yield Delta(text=".", finish_reason="stop")

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """None."""
        return ()


def said(request: SampleRequest) -> str:
    """How many messages there are."""
    assert isinstance(request.prompt, ChatPrompt)
    return f"{len(request.prompt.messages)} messages"


def begin(sampler: Talker, **given: Any) -> Conversation:
    """A conversation."""
    return Conversation(sampler, ChatSettings.model_validate(given))


async def test_what_was_said_is_told_again():
    """In order, after the system message; as pieces on the screen; until it is reset."""
    talk, shown = begin(Talker(*BOTH), system="Be brief"), []
    assert (await talk.answer("Hi", show=shown.append)).text == "2 messages."
    assert (await talk.answer("Ho", show=shown.append)).text == "4 messages."
    assert shown == ["2 messages", ".", "4 messages", "."]
    assert [m.role for m in talk.messages] == ["system", *["user", "assistant"] * 2]
    talk.reset()
    assert talk.messages == (Message("system", "Be brief"),)


async def test_without_streaming_it_comes_whole():
    """For engines that do not stream."""
    answer = await begin(Talker(Capability.CHAT)).answer("Hi", show=lambda _: None)
    assert (answer.text, answer.cut_off) == ("1 messages", True)


async def test_an_answer_that_is_stopped_stays():
    """As far as it came; one that had not begun leaves nothing."""
    sampler = Talker(*BOTH)
    sampler.stalls = True
    talk, begun = begin(sampler), asyncio.Event()
    task = asyncio.create_task(talk.answer("Hi", show=lambda _: begun.set()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert talk.messages == (Message("user", "Hi"), Message("assistant", "1 messages"))
    task = asyncio.create_task(talk.answer("Ho", show=lambda _: None))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(talk.messages) == 2


@pytest.mark.parametrize("failure", [ConnectionFailedError("gone"), ContextOverflowError("long")])
async def test_a_failure_leaves_the_conversation_as_it_was(failure: WireError):
    """The message can be sent again, or another one; an overflow is explained."""
    sampler = Talker(*BOTH)
    talk = begin(sampler)
    sampler.failure = failure
    with pytest.raises(type(failure), match=r"^(gone|long)"):
        await talk.answer("Hi", show=lambda _: None)
    assert talk.messages == ()
    sampler.failure = None
    await talk.answer("Hi", show=lambda _: None)
    before, sampler.failure = talk.messages, failure
    with pytest.raises(type(failure)) as raised:
        await talk.answer("Ho", show=lambda _: None)
    assert talk.messages == before
    if isinstance(failure, ContextOverflowError):
        assert "your last message was left out" in str(raised.value)
        assert "/reset forgets the 2 messages so far" in str(raised.value)


def test_an_engine_that_only_continues_texts():
    """Is refused, with what to do instead."""
    with pytest.raises(UnsupportedError, match="`enginehouse sample`"):
        begin(Talker(Capability.TEXT))
