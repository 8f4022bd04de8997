"""What a case is, and what the cases have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from enginehouse.core.errors import WireError
from enginehouse.core.messages import ChatPrompt, Message, Prompt, TextPrompt
from enginehouse.core.sampler import Capability, Sampler, SampleRequest, SampleResponse
from enginehouse.core.sampling import SamplingParameters

CHAT = ChatPrompt((Message("user", "What is the capital of France?"),))
TEXT = "Once upon a time, in a small house by the sea,"
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}


class Inapplicable(Exception):  # noqa: N818 - not an error
    """This server was not started for what the case tests; the text says how that shows."""


@dataclass(frozen=True)
class Subject:
    """What is tested. `adapter` is the name of a LoRA adapter that is loaded, if there is one."""

    sampler: Sampler
    adapter: str | None = None

    @property
    def prompt(self) -> Prompt:
        """A prompt for cases about something else: a chat if the engine has chat."""
        chats = Capability.CHAT in self.sampler.capabilities.supports
        return CHAT if chats else TextPrompt(TEXT)

    async def ask(self, prompt: Prompt | None = None, **parameters: Any) -> SampleResponse:
        """The answer to `prompt`, greedy and of at most 16 tokens by default."""
        return await self.sampler.sample(self.request(prompt, **parameters))

    def request(self, prompt: Prompt | None = None, **parameters: Any) -> SampleRequest:
        """The request that `ask` sends."""
        return request_of(prompt or self.prompt, **parameters)


class Case(msgspec.Struct, frozen=True):
    """One promise, and the capabilities that it needs."""

    promise: str
    needs: frozenset[Capability]
    run: Callable[[Subject], Awaitable[None]]


_cases: dict[str, Case] = {}
CASES: Mapping[str, Case] = _cases


def case(
    *needs: Capability,
) -> Callable[[Callable[[Subject], Awaitable[None]]], Callable[[Subject], Awaitable[None]]]:
    """Make a function a case of its own name; its docstring is the promise."""

    def register(run: Callable[[Subject], Awaitable[None]]) -> Callable[[Subject], Awaitable[None]]:
        promise = (run.__doc__ or "").strip().rstrip(".")
        _cases[run.__name__] = Case(promise, frozenset(needs), run)
        return run

    return register


def request_of(prompt: Prompt, **parameters: Any) -> SampleRequest:
    """A request, greedy and of at most 16 tokens by default."""
    return SampleRequest(
        prompt=prompt, parameters=SamplingParameters(**{"max_tokens": 16} | parameters)
    )


def same(first: object, second: object) -> None:
    """Fail unless the two are equal."""
    assert first == second, f"{first!r} is not {second!r}"


def texts(response: SampleResponse) -> list[str]:
    """The answers' texts."""
    return [completion.text for completion in response.completions]


async def raises(asking: Awaitable[SampleResponse | object], wanted: type[WireError]) -> WireError:
    """Return the error that is raised; fail unless it is a `wanted`."""
    try:
        result = await asking
    except wanted as error:
        return error
    except WireError as error:
        raise AssertionError(
            f"{type(error).__name__} instead of {wanted.__name__}: {error}"
        ) from None
    given = texts(result) if isinstance(result, SampleResponse) else result
    raise AssertionError(f"{wanted.__name__} was not raised; the answer was {given}")
