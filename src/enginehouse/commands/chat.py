"""`enginehouse chat`: a conversation, of which nothing is lost when an answer fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import msgspec

from enginehouse.commands.configuration import ChatSettings
from enginehouse.core.errors import ContextOverflowError, UnsupportedError
from enginehouse.core.messages import ChatPrompt, Message
from enginehouse.core.sampler import Capability, Delta, Sampler, SampleRequest
from enginehouse.core.sampling import SamplingParameters


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What was answered; `cut_off` if it is as long as max_tokens allows."""

    text: str
    cut_off: bool


class Conversation:
    """What was said so far. Raises UnsupportedError for a sampler that cannot chat."""

    def __init__(self, sampler: Sampler, settings: ChatSettings) -> None:
        supports = sampler.capabilities.supports
        if Capability.CHAT not in supports:
            raise UnsupportedError(
                "this engine continues texts and has no chat", fix="use `enginehouse sample`"
            )
        self._sampler = sampler
        self._streams = Capability.STREAM in supports
        self._parameters = SamplingParameters(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_tokens,
            seed=settings.seed,
        )
        self._system = (Message("system", settings.system),) if settings.system else ()
        self.messages: tuple[Message, ...] = self._system

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = self._system

    async def answer(self, text: str, *, show: Callable[[str], None]) -> Answer:
        """Say `text`; `show` is given the answer's pieces as they come.

        When cancelled, the answer as far as it came stays in the conversation. Raises WireError,
        and then the conversation is as it was before.
        """
        said = (*self.messages, Message("user", text))
        request = SampleRequest(prompt=ChatPrompt(said), parameters=self._parameters)
        pieces: list[str] = []
        reason = None
        try:
            async with aclosing(self._pieces(request)) as deltas:
                async for delta in deltas:
                    pieces.append(delta.text)
                    reason = delta.finish_reason or reason
                    if delta.text:
                        show(delta.text)
        except asyncio.CancelledError:
            if answered := "".join(pieces):
                self.messages = (*said, Message("assistant", answered))
            raise
        except ContextOverflowError as error:
            raise self._too_long(error) from error
        answered = "".join(pieces)
        self.messages = (*said, Message("assistant", answered))
        return Answer(text=answered, cut_off=reason == "length")

    async def _pieces(self, request: SampleRequest) -> AsyncGenerator[Delta]:
        if self._streams:
            async with aclosing(self._sampler.stream(request)) as deltas:  # type: ignore[type-var]
                async for delta in deltas:
                    yield delta
            return
        (completion,) = (await self._sampler.sample(request)).completions
        yield Delta(text=completion.text, finish_reason=completion.finish_reason)

    def _too_long(self, error: ContextOverflowError) -> ContextOverflowError:
        if self.messages == self._system:
            return error
        turns = len(self.messages) - len(self._system)
        return ContextOverflowError(
            "the conversation no longer fits the model's context; your last message was left out",
            why=error.message,
            fix=f"/reset forgets the {turns} messages so far, which are kept otherwise; a smaller "
            "--max-tokens leaves more room for them",
            status=error.status,
        )
