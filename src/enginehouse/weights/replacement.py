"""One replacement of a running server's weights, step by step."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar, cast

import msgspec

from enginehouse.client.transport import Transport, WireRequest
from enginehouse.client.wire import InFlight, WeightEndpoints, Wire
from enginehouse.core.errors import ServerFaultError, WeightsError, WireError
from enginehouse.core.messages import TextPrompt
from enginehouse.core.sampler import Capabilities, SampleRequest, Timing
from enginehouse.core.sampling import SamplingParameters
from enginehouse.weights.declared import Weights

_CANARY = SampleRequest(
    prompt=TextPrompt("The capital of France is"),
    parameters=SamplingParameters(max_tokens=4, logprobs=0, ignore_eos=True),
)
One = TypeVar("One")
Other = TypeVar("Other")
_ABSENT = (404, 405)
PENDING = "loading "  # prefix of the name of weights that are not loaded yet


class WeightLoader(Protocol):
    """How new weights get into a held engine: from disk, or from a trainer."""

    async def __call__(self, weights: Weights, *, send: Send) -> None:
        """Return when the engine has all of them. Raises WireError or WeightsError."""
        ...


class Send(Protocol):
    """Sends a request to the server; an error status is raised as a WireError."""

    async def __call__(self, request: WireRequest) -> bytes:
        """The reply's body."""
        ...


def load_from_disk(endpoints: WeightEndpoints) -> WeightLoader:
    """The engine reads them from their folder, which must have the same path for it as for us."""

    async def load(weights: Weights, *, send: Send) -> None:
        assert weights.path is not None
        await send(endpoints.reload(str(weights.path)))

    return load


class Replacement:
    """Records its progress: `stage` in words, and whether the server is held or was changed."""

    def __init__(
        self,
        transport: Transport,
        *,
        wire: Wire,
        model: str,
        capabilities: Capabilities,
        dozes: bool,
        check: Callable[[Weights], Awaitable[None]],
        load: WeightLoader | None = None,
    ) -> None:
        assert wire.weights is not None
        self._transport = transport
        self._wire = wire
        self._endpoints = wire.weights
        self._load = load or load_from_disk(wire.weights)
        self._model = model
        self._capabilities = capabilities
        self._dozes = dozes
        self._check = check
        self.stage = "the start"
        self.held = False
        self.touched = False
        self.dozed = 0  # how many of the requests that put it to sleep were answered
        self.canary_seconds = 0.0
        self._interrupted = False  # whether an earlier replacement was

    async def hold(self, in_flight: InFlight, *, before: Replacement | None = None) -> None:
        """Pause the server: from here on it computes nothing, and requests wait.

        `before` is a replacement that has tried this before: a server that it put to sleep is not
        put to sleep again.
        """
        self.stage = "the end of the requests in flight"
        self.held = True
        make = self._endpoints.doze if self._dozes else self._endpoints.hold
        # Asleep it no longer has weights, even if its reply was lost.
        self.touched = self._dozes
        self.dozed = before.dozed if before is not None else 0

        async def hold() -> None:
            for request in make(in_flight)[self.dozed :]:
                await self.send(request)
                self.dozed += self._dozes

        try:
            _, named = await _both(hold(), self.name())
        except WeightsError:
            if not self.dozed:  # the server lacks the endpoint
                self.held = self.touched = False
            raise
        self._interrupted = named.startswith(PENDING)

    async def put(self, weights: Weights) -> None:
        """Load them into the held server, resume it, and check that it answers.

        Raises WireError or WeightsError, whose `kind` names the step.
        """
        self.touched = True
        # The weights have a special name until they are loaded. It shows others that a swap was
        # interrupted, and its loss shows us that the server was restarted in between.
        pending = f"{PENDING}{weights.name}"
        self.stage = "the name of weights that are not loaded yet"
        if self._interrupted:
            await self._end_update()
        await self.send(self._endpoints.name(pending))
        self.stage = "the transfer" if weights.path is None else "the reload"
        await self._load(weights, send=self.send)
        await self._check(weights)
        self.stage = "the reset of the prefix cache"
        _, reply = await _both(self.require_name(pending), self.send(self._endpoints.reset_cache))
        if not self._endpoints.is_reset(reply):
            raise WeightsError(
                "the server did not reset its prefix cache",
                why="new answers would use keys and values that the old weights computed",
                kind="cache",
            )
        self.stage = "the weights' new name"
        await self.send(self._endpoints.name(weights.name))
        await self.release()
        self.stage = "the canary"
        began = time.perf_counter()
        await self._ask_canary()
        self.canary_seconds = time.perf_counter() - began
        await self.require_name(weights.name)

    async def release(self) -> None:
        """Let the server compute again."""
        self.stage = "the release of waiting requests"
        await self._send_all(self._endpoints.wake if self._dozes else self._endpoints.release)
        self.held = False
        self.dozed = 0

    async def name(self) -> str:
        """What the server calls its weights; its `unnamed` if it was never told."""
        return self._endpoints.read_name(await self.send(self._endpoints.ask_name))

    async def _end_update(self) -> None:
        """End a transfer that was interrupted, whatever its result.

        vLLM keeps the tensors of half-sent layers as parts of the next weights, wherever these come
        from: its reload from disk then fails, or mixes them in
        (model_executor/model_loader/reload/layerwise.py; seen in 0.32).
        """
        endpoints = self._endpoints.transfer
        if endpoints is None:
            return
        try:
            await self.send(endpoints.start)
        except WeightsError:  # it has no such endpoint
            return
        except ServerFaultError as error:
            if endpoints.not_configured in error.message:
                return
            # Any other refusal means that the transfer is still in progress.
        await self.send(endpoints.finish)

    async def require_name(self, expected: str) -> None:
        """Raise WeightsError unless that is what the server calls its weights."""
        if (name := await self.name()) != expected:
            raise WeightsError(
                "the server was restarted in the middle of the swap",
                why=f"it calls its weights {name!r}, not {expected!r}",
                kind="restarted",
            )

    async def _ask_canary(self) -> None:
        dialect = self._wire.completions
        assert dialect is not None
        body = dialect.encode(
            _CANARY, model=self._model, capabilities=self._capabilities, stream=False
        )
        try:
            reply = await self.send(WireRequest("POST", dialect.path, body))
            answer = dialect.decode(reply, request=_CANARY, timing=Timing(started=0, elapsed=0))
        except WireError as error:
            raise WeightsError(
                "a request of four tokens failed", why=error.message, kind="canary"
            ) from error
        logprobs = [token.logprob for c in answer.completions for token in c.logprobs or ()]
        if not logprobs or not all(self._endpoints.minus_infinity < p < math.inf for p in logprobs):
            raise WeightsError(
                "the answer to a request of four tokens has no probabilities",
                why=f"the log-probabilities of {answer.completions[0].text!r} are {logprobs}",
                kind="canary",
            )

    async def _send_all(self, requests: Sequence[WireRequest]) -> None:
        for request in requests:
            await self.send(request)

    async def send(self, request: WireRequest) -> bytes:
        """The body of the reply. Raises WireError, or WeightsError if the server lacks the path."""
        # vLLM's server closes a connection after a 500, and may be about to: use a new one.
        reply = await self._transport.send(msgspec.structs.replace(request, fresh=True))
        if reply.status == 200:
            return reply.body
        if reply.status in _ABSENT:
            raise WeightsError(
                f"the server has no {request.path.partition('?')[0]}",
                why=self._endpoints.absent,
                fix="start it with `enginehouse serve MODEL --enable-weight-swap`",
                kind="unsupported",
            )
        raise self._wire.error_reply(reply.status, reply.body, retry_after=reply.retry_after)


async def _both(one: Awaitable[One], other: Awaitable[Other]) -> tuple[One, Other]:
    """Await both at the same time, even if one fails; the first one's error has precedence."""
    results = await asyncio.gather(one, other, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return cast("tuple[One, Other]", tuple(results))
