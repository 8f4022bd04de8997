"""A closed loop: a fixed number of requests in flight, each answer followed by the next request.

Latencies are defined as in vLLM's `vllm bench serve` (vllm/benchmarks/serve.py and
lib/endpoint_request_func.py of 0.32): the clock is read when a chunk is read from the connection,
and only the decoding of that chunk runs in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from enginehouse.core.errors import MalformedResponseError, WireError
from enginehouse.core.sampler import Sampler, SampleRequest
from enginehouse.runtime.workers import run_workers

Clock = Callable[[], float]


@dataclass(kw_only=True)
class TimedRequest:
    """One request. `chunks` has the time at which each chunk with tokens was read.

    Either `failure` is set, or there is a chunk and the token counts are the server's own.
    """

    started: float
    ended: float = 0.0
    chunks: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0
    failure: WireError | None = None

    @property
    def first_token(self) -> float:
        """Seconds to the chunk with the first token."""
        return self.chunks[0] - self.started

    @property
    def end_to_end(self) -> float:
        """Seconds to the chunk with the last token."""
        return self.chunks[-1] - self.started

    @property
    def gaps(self) -> list[float]:
        """Seconds between one chunk and the next."""
        return [late - early for early, late in zip(self.chunks, self.chunks[1:], strict=False)]


async def run_closed_loop(
    sampler: Sampler,
    requests: Iterable[SampleRequest],
    *,
    concurrency: int,
    clock: Clock = time.perf_counter,
    progress: Callable[[TimedRequest], None] = lambda _: None,
) -> list[TimedRequest]:
    """Send every request, `concurrency` at a time. The result includes failed ones.

    `sampler` must neither retry nor delay requests, since both would be measured.
    """
    done: list[TimedRequest] = []

    async def measure(request: SampleRequest) -> None:
        timed = await ask(sampler, request, clock=clock)
        done.append(timed)
        progress(timed)

    await run_workers(measure, requests, count=concurrency)
    return done


async def ask(sampler: Sampler, request: SampleRequest, *, clock: Clock) -> TimedRequest:
    """Stream one answer. A WireError is returned as `failure`, never raised."""
    timed = TimedRequest(started=clock())
    token_ids: int | None = 0
    try:
        async for delta in sampler.stream(request):
            now = clock()
            if delta.usage is not None:
                timed.prompt_tokens = delta.usage.prompt_tokens
                timed.output_tokens = delta.usage.completion_tokens
            elif delta.text if delta.token_ids is None else delta.token_ids:
                timed.chunks.append(now)
                if delta.token_ids is None:
                    token_ids = None
                elif token_ids is not None:
                    token_ids += len(delta.token_ids)
        timed.output_tokens = timed.output_tokens or token_ids or 0
        _require_tokens(timed)
    except WireError as error:
        timed.failure = error
    timed.ended = clock()
    return timed


def _require_tokens(timed: TimedRequest) -> None:
    if not timed.chunks:
        raise MalformedResponseError("the answer has no token")
    if not timed.output_tokens:
        raise MalformedResponseError(
            "the server does not say how many tokens it generated",
            why="the stream has neither a usage (stream_options.include_usage) nor token ids",
            fix="counting chunks would be a guess: measure a server that reports token counts",
        )
