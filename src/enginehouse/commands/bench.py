"""`enginehouse bench`: a server under load, its own or one at a URL, measured from outside."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
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
from enginehouse.deployment.asking import adapted, attach
from enginehouse.deployment.resident import serving_target
from enginehouse.engines.base import Engine
from enginehouse.results.benchmark import Benchmark, LoadMeasurement
from enginehouse.runtime.context import Notify
from enginehouse.servers.endpoint import Server
from enginehouse.store.layout import Layout

_FEWEST, _EACH = 32, 4
_NEWS = 10.0  # seconds between lines about progress
_ONCE = Retries(attempts=1, base=0, cap=0, patience=0, endurance=0)


async def run_benchmark(config: BenchConfig, *, layout: Layout, notify: Notify) -> Benchmark:
    """Measure every concurrency, one after another; a server of our own is stopped at the end.

    Raises what `serving` does, WireError for a server that cannot be used or fails all of the
    warm-up, and ConfigurationError. Requests that fail later are in what comes back.
    """
    _demand_connections(max(config.concurrency))
    async with _asked(config, layout=layout, notify=notify) as asked:
        server, engine, model = asked.server, asked.engine, asked.model
        async with HTTPSampler(
            server.base_url,
            model=model,
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
                await _measure(sampler, prompts, config, concurrency=concurrency, notify=notify)
                for concurrency in config.concurrency
            ]
    return Benchmark(
        url=server.base_url,
        model=model,
        engine=server.engine,
        engine_version=server.version,
        engine_arguments=server.command,
        input_tokens=config.input_tokens,
        output_tokens=config.output_tokens,
        seed=config.seed,
        loads=tuple(loads),
    )


def _demand_connections(wanted: int) -> None:
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


@dataclass(frozen=True, kw_only=True)
class _Asked:
    server: Server
    engine: Engine
    model: str


@asynccontextmanager
async def _asked(config: BenchConfig, *, layout: Layout, notify: Notify) -> AsyncIterator[_Asked]:
    if config.url is None:
        async with serving_target(config, layout=layout, notify=notify, concurrency=1) as ready:
            yield _Asked(server=ready.server, engine=ready.engine, model=ready.sampler.model)
        return
    server, engine = await attach(config, layout=layout)
    model = _model(config, server)
    async with adapted(config, server, engine, layout=layout, notify=notify) as adapter:
        yield _Asked(server=server, engine=engine, model=adapter or model)


def _model(config: BenchConfig, server: Server) -> str:
    if config.model is None:
        return server.models[0]
    if config.model not in server.models:
        raise ConfigurationError(
            f"the server at {server.base_url} does not serve {config.model!r}",
            fix=f"leave the model out, or name one of: {', '.join(server.models)}",
        )
    return config.model


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
        sampler, measured, concurrency=concurrency, progress=_news(concurrency, count, notify)
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


def _news(concurrency: int, count: int, notify: Notify) -> Callable[[TimedRequest], None]:
    """A line about progress every few seconds."""
    following = time.monotonic() + _NEWS
    done = failed = 0

    def progress(timed: TimedRequest) -> None:
        nonlocal following, done, failed
        done += 1
        failed += timed.failure is not None
        if time.monotonic() >= following:
            following = time.monotonic() + _NEWS
            notify(f"concurrency {concurrency}: {done:,} of {count:,}, {failed:,} failed")

    return progress


async def _load(sampler: HTTPSampler) -> Load | None:
    try:
        return await sampler.load()
    except WireError:
        return None
