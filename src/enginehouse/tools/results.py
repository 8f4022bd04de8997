"""What becomes of a question with tools."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from enginehouse.core.messages import Message
from enginehouse.core.sampler import SampleRequest, SampleResponse
from enginehouse.core.tool_calls import ToolCall
from enginehouse.core.tool_steps import Step


class CallOutcome(StrEnum):
    """What an answer was.

    `called`: every call is valid. `answered`: in words, where that was allowed. `missing`: no call
    where one was required, or neither call nor words. `invalid`: a call that is not valid.
    `truncated`: max_tokens cut it off, whatever it holds.
    """

    CALLED = "called"
    ANSWERED = "answered"
    MISSING = "missing"
    INVALID = "invalid"
    TRUNCATED = "truncated"


DONE = (CallOutcome.CALLED, CallOutcome.ANSWERED)


class CheckedCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a known tool whose arguments are valid against the tool's schema."""

    id: str
    name: str
    arguments: dict[str, Any]


class Attempt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request of a step. `why` says why its answer was not taken, None if it was.

    Without a response (and outcome) the engine does not do this step.
    """

    step: Step
    request: SampleRequest
    response: SampleResponse | None = None
    outcome: CallOutcome | None = None
    why: str | None = None


class ToolResult(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of the last step that was tried, and every attempt on the way to it.

    Of a call that was cut off and, after it, none at all, the first is reported.

    `calls` is empty unless the outcome is `called`; `text` is what the model wrote, with `called`
    only what stood beside the calls, and "" where there is none.
    """

    outcome: CallOutcome
    step: Step
    calls: tuple[CheckedCall, ...]
    text: str
    attempts: tuple[Attempt, ...]

    @property
    def prompt_tokens(self) -> int:
        """The tokens of all prompts."""
        return sum(a.response.prompt_tokens for a in self.attempts if a.response)

    @property
    def completion_tokens(self) -> int:
        """The tokens of all answers."""
        return sum(a.response.completion_tokens for a in self.attempts if a.response)

    @property
    def why(self) -> str | None:
        """Why there is neither call nor answer; None if there is."""
        reported = (a for a in reversed(self.attempts) if a.outcome is self.outcome)
        return next(attempt.why for attempt in reported)

    def message(self) -> Message:
        """The assistant's turn, as the conversation goes on after it."""
        calls = tuple(
            ToolCall(
                id=call.id, name=call.name, arguments=msgspec.json.encode(call.arguments).decode()
            )
            for call in self.calls
        )
        return Message("assistant", self.text, tool_calls=calls)
