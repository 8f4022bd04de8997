"""A sampler that answers from a script, for tests of tool calling."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from enginehouse.core.sampler import (
    Capabilities,
    Capability,
    Completion,
    Delta,
    SampleRequest,
    SampleResponse,
    Timing,
)
from enginehouse.core.tool_calls import ToolCall
from enginehouse.tools import Step

Reply = Completion | str | Exception


class Scripted:
    """Gives the replies in order, the last one for good, or what a function makes of a request."""

    capabilities = Capabilities(supports=frozenset(Capability))

    def __init__(self, *replies: Reply | Callable[[SampleRequest], Reply]) -> None:
        self.replies = list(replies)
        self.requests: list[SampleRequest] = []

    @property
    def steps(self) -> list[Step]:
        """The step of every request."""
        return [step_of(request) for request in self.requests]

    async def sample(self, request: SampleRequest) -> SampleResponse:
        """The next reply."""
        self.requests.append(request)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if callable(reply) and not isinstance(reply, Exception):
            reply = reply(request)
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, str):
            reply = Completion(text=reply, finish_reason="stop")
        return SampleResponse(
            completions=(reply,),
            model="m",
            request_id=str(len(self.requests)),
            prompt_tokens=10,
            completion_tokens=5,
            timing=Timing(started=0, elapsed=0),
        )

    def stream(self, request: SampleRequest) -> AsyncIterator[Delta]:
        """Never asked for."""
        raise NotImplementedError

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Never asked for."""
        raise NotImplementedError


def step_of(request: SampleRequest) -> Step:
    """The step that a request belongs to."""
    if request.tools:
        return Step.NATIVE
    return Step.CONSTRAINED if request.parameters.structured else Step.PROMPTED


def native(name: str, arguments: str, *more: tuple[str, str], **fields: Any) -> Completion:
    """An answer with native calls."""
    calls = [(name, arguments), *more]
    return Completion(
        text=fields.pop("text", ""),
        finish_reason=fields.pop("finish_reason", "tool_calls"),
        tool_calls=tuple(
            ToolCall(id=f"id_{place}", name=n, arguments=a) for place, (n, a) in enumerate(calls)
        ),
    )


def cut_off(text: str) -> Completion:
    """An answer that max_tokens ended."""
    return Completion(text=text, finish_reason="length")
