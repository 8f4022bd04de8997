"""Several independent servers of one model, behind one Sampler."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from enginehouse.core.errors import ConfigurationError, ConnectionFailedError, ServerGoneError
from enginehouse.core.sampler import (
    Capabilities,
    Delta,
    Sampler,
    SampleRequest,
    SampleResponse,
)

S = TypeVar("S", bound=Sampler)
T = TypeVar("T")
AVOIDED = 10.0  # seconds for which a server that could not be reached comes last
_GONE = (ConnectionFailedError, ServerGoneError)


@dataclass(eq=False)
class _Replica(Generic[S]):
    """One server: what it has to do, and when it was last given something or could not be had."""

    sampler: S
    outstanding: int = 0
    given: int = 0
    failed: float = -math.inf


class ReplicaSet(Generic[S]):
    """Gives each request to the server with the fewest outstanding ones.

    Among equally busy ones it is the server that last answered the request's model, whose adapter
    is in memory and in the prefix cache; then the one that has waited longest. A server that cannot
    be reached is passed over for AVOIDED seconds, and its request asked of the next one; what has
    begun to answer is not asked again. `samplers` are the servers', in the order given.
    """

    def __init__(
        self, samplers: Sequence[S], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not samplers:
            raise ConfigurationError("there is no server to ask", fix="name at least one")
        self.samplers = tuple(samplers)
        self._replicas = tuple(_Replica(sampler) for sampler in samplers)
        self._clock = clock
        self._turns = itertools.count(1)
        self._last: dict[str | None, _Replica[S]] = {}

    @property
    def capabilities(self) -> Capabilities:
        """What may be asked of every one of them."""
        first, *others = (sampler.capabilities for sampler in self.samplers)
        limits = [one.most_logprobs for one in (first, *others) if one.most_logprobs is not None]
        return Capabilities(
            supports=first.supports.intersection(*(one.supports for one in others)),
            ignored={name: why for one in (*others, first) for name, why in one.ignored.items()},
            most_logprobs=min(limits, default=None),
        )

    @property
    def outstanding(self) -> tuple[int, ...]:
        """How many requests each server has to answer just now."""
        return tuple(replica.outstanding for replica in self._replicas)

    async def sample(self, request: SampleRequest) -> SampleResponse:
        """Ask once. Raises WireError, or ServerGoneError when no server is left."""
        return await self._asked(request.model, lambda sampler: sampler.sample(request))

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """The servers' own token ids of `text`."""
        return await self._asked(
            None, lambda sampler: sampler.tokenize(text, add_special_tokens=add_special_tokens)
        )

    async def stream(self, request: SampleRequest) -> AsyncIterator[Delta]:
        """Ask once, yielding the answer as it is made.

        A consumer that may leave early closes it with contextlib.aclosing.
        """
        tried: set[_Replica[S]] = set()
        begun = False
        while True:
            try:
                with self._chosen(request.model, tried) as replica:
                    deltas = replica.sampler.stream(request)
                    async with aclosing(deltas):  # type: ignore[type-var]
                        async for delta in deltas:
                            begun = True
                            yield delta
            except _GONE:
                if begun or len(tried) == len(self._replicas):
                    raise
            else:
                return

    async def _asked(self, model: str | None, ask: Callable[[S], Awaitable[T]]) -> T:
        tried: set[_Replica[S]] = set()
        while True:
            try:
                with self._chosen(model, tried) as replica:
                    return await ask(replica.sampler)
            except _GONE:
                if len(tried) == len(self._replicas):
                    raise

    @contextmanager
    def _chosen(self, model: str | None, tried: set[_Replica[S]]) -> Iterator[_Replica[S]]:
        """The best server that is not among those tried, which it joins; busy for the block."""
        avoided = self._clock() - AVOIDED
        affine = self._last.get(model)
        replica = min(
            (one for one in self._replicas if one not in tried),
            key=lambda one: (one.failed > avoided, one.outstanding, one is not affine, one.given),
        )
        tried.add(replica)
        replica.outstanding += 1
        replica.given = next(self._turns)
        self._last[model] = replica
        try:
            yield replica
        except _GONE:
            replica.failed = self._clock()
            raise
        finally:
            replica.outstanding -= 1
