"""A person who plays at the terminal, as a sampler."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from itertools import takewhile
from typing import Final, Protocol

from enginehouse.core.messages import ChatPrompt
from enginehouse.core.sampler import (
    Capabilities,
    Capability,
    Completion,
    Delta,
    Provenance,
    SampleRequest,
    SampleResponse,
    Timing,
)

PERSON: Final = Provenance(
    engine=None,
    engine_version=None,
    engine_arguments=None,
    environment=None,
    model="human",
    weights_digest=None,
    chat_template_digest=None,
    base_url="",
    unknown=dict.fromkeys(
        (
            "engine",
            "engine_version",
            "engine_arguments",
            "environment",
            "weights_digest",
            "chat_template_digest",
        ),
        "a person answers",
    ),
)


class Human(Protocol):
    """A person who can be shown a text and answers it."""

    async def ask(self, text: str) -> str:
        """Show a text and return the answer to it, which may have several lines."""
        ...


class HumanSampler:
    """Asks a person one question at a time, and shows only what they have not read yet."""

    capabilities = Capabilities(supports=frozenset({Capability.CHAT}))

    def __init__(self, human: Human) -> None:
        self._human = human
        self._turn = asyncio.Lock()
        self._shown: list[str] = []

    async def sample(self, request: SampleRequest) -> SampleResponse:
        """The person's answer."""
        assert isinstance(request.prompt, ChatPrompt)
        text = "\n\n".join(message.content for message in request.prompt.messages)
        async with self._turn:
            lines = text.splitlines()
            pairs = zip(lines, self._shown, strict=False)
            known = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            started, clock = time.time(), time.monotonic()
            answer = await self._human.ask("\n".join(lines[known:]))
            answer = answer.encode("utf-8", "replace").decode()  # a terminal may send other bytes
            self._shown = lines
        return SampleResponse(
            completions=(Completion(text=answer, finish_reason="stop"),),
            model=PERSON.model,
            request_id="",
            prompt_tokens=0,
            completion_tokens=0,
            timing=Timing(started=started, elapsed=time.monotonic() - clock),
        )

    def stream(self, request: SampleRequest) -> AsyncIterator[Delta]:
        """People do not stream."""
        raise NotImplementedError

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """People have no tokens."""
        raise NotImplementedError
