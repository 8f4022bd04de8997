"""`enginehouse bench`: a server under load, measured from outside."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from enginehouse.bench.closed_loop import TimedRequest, run_closed_loop
from enginehouse.bench.configuration import BenchConfig
from enginehouse.bench.load_figures import summarise
from enginehouse.bench.random_prompts import ordinary_tokens, random_prompts
from enginehouse.client.open_files import most_connections, open_file_limit
from enginehouse.client.retry import Retries
from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.errors import ConfigurationError, WireError
from enginehouse.core.messages import TokenPrompt
from enginehouse.core.sampler import Load, SampleRequest
from enginehouse.core.sampling import SamplingParameters
from enginehouse.deployment.opening import open_deployment
from enginehouse.results.benchmark import Benchmark, LoadMeasurement
from enginehouse.runtime.context import Context, Notify

_FEWEST, _EACH = 32, 4
_PROGRESS_EVERY = 10.0  # seconds
_ONCE = Retries(attempts=1, base=0, cap=0, patience=0, endurance=0)


async def run_benchmark(config: BenchConfig, context: Context) -> Benchmark:
    """Measure every concurrency, one after another; a server of our own is stopped at the end.

    Raises what `open_deployment` does, WireError for a server that fails all of the warm-up, and
    ConfigurationError. Requests that fail later are in the result.
    """
    _require_connections(max(config.concurrency))
    async with open_deployment(config, context, concurrency=1) as deployment:
        server, engine = deployment.server, deployment.engine
        async with HTTPSampler(
            server.base_url,
            model=deployment.sampler.model,
            capabilities=engine.capabilities(server.version),
            wire=engine.wire,
            api_key=server.api_key,
            concurrency=max(config.concurrency),
            load_signal=engine.load_signal,
            retries=_ONCE,
        ) as sampler:
            prompts = random_prompts(
                await ordinary_tokens(sampler), length=config.input_tokens, seed=config.seed
            )
            loads = [
                await _measure(
                    sampler, prompts, config, concurrency=concurrency, notify=context.notify
                )
                for concurrency in config.concurrency
            ]
    return Benchmark(
        url=server.base_url,
        model=sampler.model,
        engine=server.engine,
        engine_version=server.version,
        engine_arguments=server.command,
        input_tokens=config.input_tokens,
        output_tokens=config.output_tokens,
        seed=config.seed,
        loads=tuple(loads),
    )


def _require_connections(wanted: int) -> None:
    most = most_connections()
    if most is not None and wanted > most:
        raise ConfigurationError(
            f"{wanted} requests in flight need more files than this process may open",
            why=f"it may open {open_file_limit()} (ulimit -n), which is enough for {most} requests",
            fix=f"raise the limit (ulimit -n {wanted + 256}), or lower --concurrency",
        )


def require_answers(benchmark: Benchmark, *, max_failed: float) -> None:
    """Raise WireError if more than that share of a concurrency's requests failed."""
    for load in benchmark.loads:
        if load.failed > max_failed * load.requests:
            worst = max(load.failures.values(), key=lambda failures: failures.count)
            raise WireError(
                f"{load.failed:,} of {load.requests:,} requests failed at concurrency "
                f"{load.concurrency}: these figures are not the server's",
                why=worst.example,
                fix="read the server's log; --max-failed allows more",
            )


async def _measure(
    sampler: HTTPSampler,
    prompts: Iterator[TokenPrompt],
    config: BenchConfig,
    *,
    concurrency: int,
    notify: Notify,
) -> LoadMeasurement:
    count = config.requests or max(_FEWEST, _EACH * concurrency)
    warmup = concurrency if config.warmup is None else config.warmup
    requests = "1 request" if count == 1 else f"{count:,} requests"
    notify(f"concurrency {concurrency}: {warmup:,} to warm up, then {requests}")
    await _warm_up(sampler, _requests(prompts, warmup, config), concurrency=concurrency)
    measured = _requests(prompts, count, config)
    before = await _load(sampler)
    cpu, begun = time.process_time(), time.perf_counter()
    timed = await run_closed_loop(
        sampler, measured, concurrency=concurrency, progress=_reporting(concurrency, count, notify)
    )
    cpu, wall = time.process_time() - cpu, time.perf_counter() - begun
    return summarise(
        timed,
        config,
        concurrency=concurrency,
        warmup=warmup,
        client_cpu=cpu / wall,
        before=before,
        after=await _load(sampler),
    )


def _requests(
    prompts: Iterator[TokenPrompt], count: int, config: BenchConfig
) -> list[SampleRequest]:
    parameters = SamplingParameters(
        temperature=0.0,
        max_tokens=config.output_tokens,
        ignore_eos=True,
        extra={"stream_options": {"include_usage": True}},
    )
    return [SampleRequest(prompt=p, parameters=parameters) for p in islice(prompts, count)]


async def _warm_up(
    sampler: HTTPSampler, requests: Sequence[SampleRequest], *, concurrency: int
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


async def _load(sampler: HTTPSampler) -> Load | None:
    try:
        return await sampler.load()
    except WireError:
        return None
