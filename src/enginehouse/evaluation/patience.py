"""A task's own bound of requests in flight, and its patience with each of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import nullcontext

import msgspec

from enginehouse.core.sampler import (
    Capabilities,
    Delivery,
    Delta,
    Sampler,
    SampleRequest,
    SampleResponse,
)


def patient(sampler: Sampler, *, delivery: Delivery, bound: asyncio.Semaphore | None) -> Sampler:
    """The sampler with this delivery of every request; the same one if nothing is asked of it."""
    if delivery == Delivery() and bound is None:
        return sampler
    return PatientSampler(sampler, delivery=delivery, bound=bound)


class PatientSampler:
    """Passes everything on to `sampler`; `bound` has a place for each request in flight."""

    def __init__(
        self, sampler: Sampler, *, delivery: Delivery, bound: asyncio.Semaphore | None
    ) -> None:
        self._sampler = sampler
        self._delivery = delivery
        self._place = bound or nullcontext()

    @property
    def capabilities(self) -> Capabilities:
        """What the sampler supports."""
        return self._sampler.capabilities

    async def sample(self, request: SampleRequest) -> SampleResponse:
        """Ask once, when there is a place. Raises WireError."""
        async with self._place:
            return await self._sampler.sample(
                msgspec.structs.replace(request, delivery=self._delivery)
            )

    def stream(self, request: SampleRequest) -> AsyncIterator[Delta]:
        """Ask once, yielding the answer as it is made; takes no place."""
        return self._sampler.stream(msgspec.structs.replace(request, delivery=self._delivery))

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """The engine's own token ids of `text`."""
        async with self._place:
            return await self._sampler.tokenize(text, add_special_tokens=add_special_tokens)
