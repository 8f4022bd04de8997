"""Counts answered requests, including those of samples that take several."""

from __future__ import annotations

from collections.abc import AsyncIterator

from enginehouse.core.sampler import Capabilities, Delta, Sampler, SampleRequest, SampleResponse


class CountingSampler:
    """Passes everything on to `sampler` and counts the answered requests.

    `generated_tokens` are the server's own counts. What is streamed or tokenized is not counted.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self.requests = 0
        self.generated_tokens = 0

    @property
    def capabilities(self) -> Capabilities:
        """What the sampler supports."""
        return self._sampler.capabilities

    async def sample(self, request: SampleRequest) -> SampleResponse:
        """Ask once. Raises WireError; retryable errors have been retried already."""
        response = await self._sampler.sample(request)
        self.requests += 1
        self.generated_tokens += response.completion_tokens
        return response

    def stream(self, request: SampleRequest) -> AsyncIterator[Delta]:
        """Ask once, yielding the answer as it is made."""
        return self._sampler.stream(request)

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """The engine's own token ids of `text`."""
        return await self._sampler.tokenize(text, add_special_tokens=add_special_tokens)
