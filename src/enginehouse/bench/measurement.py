"""One load after another on the same server, each with its own warm-up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Protocol

from enginehouse.bench.closed_loop import TimedRequest, run_closed_loop
from enginehouse.bench.load_figures import summarise
from enginehouse.bench.random_prompts import ordinary_tokens, random_prompts
from enginehouse.bench.settings import BenchSettings
from enginehouse.core.errors import WireError
from enginehouse.core.messages import TokenPrompt
from enginehouse.core.sampler import Load, Sampler, SampleRequest
from enginehouse.core.sampling import SamplingParameters
from enginehouse.results.benchmark import LoadMeasurement
from enginehouse.runtime.context import Notify

_FEWEST, _EACH = 32, 4
_PROGRESS_EVERY = 10.0  # seconds


class LoadedSampler(Sampler, Protocol):
    """A sampler that can say how busy its server is."""

    async def load(self) -> Load | None:
        """The server's queue and counters; None if it reports none. Raises WireError."""
        ...


async def measure_loads(
    sampler: LoadedSampler, settings: BenchSettings, *, notify: Notify
) -> tuple[LoadMeasurement, ...]:
    """Measure every concurrency. `sampler` must neither retry nor delay requests.

    Raises WireError for a server that cannot tokenize or that fails all of a warm-up. Requests that
    fail later are in the result.
    """
    tokens = await ordinary_tokens(sampler)
    prompts = random_prompts(tokens, length=settings.input_tokens, seed=settings.seed)
    return tuple(
        [
            await _measure(sampler, prompts, settings, concurrency=concurrency, notify=notify)
            for concurrency in settings.concurrency
        ]
    )


async def _measure(
    sampler: LoadedSampler,
    prompts: Iterator[TokenPrompt],
    settings: BenchSettings,
    *,
    concurrency: int,
    notify: Notify,
) -> LoadMeasurement:
    count = settings.requests or max(_FEWEST, _EACH * concurrency)
    warmup = concurrency if settings.warmup is None else settings.warmup
    requests = "1 request" if count == 1 else f"{count:,} requests"
    notify(f"concurrency {concurrency}: {warmup:,} to warm up, then {requests}")
    await _warm_up(sampler, _requests(prompts, warmup, settings), concurrency=concurrency)
    measured = _requests(prompts, count, settings)
    before = await _load(sampler)
    cpu, begun = time.process_time(), time.perf_counter()
    timed = await run_closed_loop(
        sampler, measured, concurrency=concurrency, progress=_reporting(concurrency, count, notify)
    )
    cpu, wall = time.process_time() - cpu, time.perf_counter() - begun
    return summarise(
        timed,
        settings,
        concurrency=concurrency,
        warmup=warmup,
        client_cpu=cpu / wall,
        before=before,
        after=await _load(sampler),
    )


def _requests(
    prompts: Iterator[TokenPrompt], count: int, settings: BenchSettings
) -> list[SampleRequest]:
    parameters = SamplingParameters(
        temperature=0.0,
        max_tokens=settings.output_tokens,
        ignore_eos=True,
        extra={"stream_options": {"include_usage": True}},
    )
    return [SampleRequest(prompt=p, parameters=parameters) for p in islice(prompts, count)]


async def _warm_up(
    sampler: Sampler, requests: Sequence[SampleRequest], *, concurrency: int
) -> None:
    timed = await run_closed_loop(sampler, requests, concurrency=concurrency)
    failures = [request.failure for request in timed if request.failure]
    if failures and len(failures) == len(timed):
        raise failures[0]


def _reporting(concurrency: int, count: int, notify: Notify) -> Callable[[TimedRequest], None]:
    """Reports progress every few seconds."""
    next_line = time.monotonic() + _PROGRESS_EVERY
    done = failed = 0

    def progress(timed: TimedRequest) -> None:
        nonlocal next_line, done, failed
        done += 1
        failed += timed.failure is not None
        if time.monotonic() >= next_line:
            next_line = time.monotonic() + _PROGRESS_EVERY
            notify(f"concurrency {concurrency}: {done:,} of {count:,}, {failed:,} failed")

    return progress


async def _load(sampler: LoadedSampler) -> Load | None:
    try:
        return await sampler.load()
    except WireError:
        return None
