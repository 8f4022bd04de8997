from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from enginehouse.commands.bench import require_answers, run_benchmark
from enginehouse.commands.configuration import BenchConfig
from enginehouse.core.errors import (
    ConfigurationError,
    ConnectionFailedError,
    ContextOverflowError,
    ServerFaultError,
    UnauthorizedError,
    WireError,
)
from enginehouse.results.benchmark import Benchmark
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout
from enginehouse.testing.fake_engine import FakeEngineHandle, running_fake_engine

PAUSE = 0.01


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., Any]:
    """Measure a server with these keys; the first is its URL, or the model's name beside a url."""

    async def run(target: str, *, said: list[str] | None = None, **keys: Any) -> Benchmark:
        given = {"input_tokens": 40, "output_tokens": 8, "requests": 6, "warmup": 0} | keys
        config = BenchConfig.model_validate({"model": target, **given})
        layout = Layout(cache=tmp_path, state=tmp_path, config=tmp_path)
        notify = [].append if said is None else said.append
        return await run_benchmark(config, Context(layout=layout, notify=notify))

    return run


@asynccontextmanager
async def fake(*flags: str, **options: Any) -> AsyncIterator[FakeEngineHandle]:
    """A server that has two names."""
    async with running_fake_engine(
        "--served-model-name", "one", "two", *flags, **options
    ) as engine:
        yield engine


@pytest.mark.slow
async def test_known_latencies_are_recovered(bench):
    """A token every 10 ms: TPOT and ITL are that, E2EL seven of them more than TTFT."""
    async with fake(token_latency=PAUSE) as engine:
        found = await bench(engine.url, concurrency=4, requests=20)
    (load,) = found.loads
    latencies = load.latencies
    assert PAUSE <= latencies.per_output_token.p50 < 3 * PAUSE
    assert PAUSE * 0.9 <= latencies.inter_token.p50 < 3 * PAUSE
    assert latencies.first_token.p50 < 5 * PAUSE
    assert latencies.end_to_end.mean == pytest.approx(
        latencies.first_token.mean + 7 * latencies.per_output_token.mean
    )
    assert (latencies.inter_token.n, latencies.end_to_end.p95 is None) == (20 * 7, False)
    assert latencies.end_to_end.p99 is None


async def test_counts_are_those_of_the_server(bench):
    """Every token once, on both sides; the warm-up is in none of them."""
    said: list[str] = []
    async with fake() as engine:
        found = await bench(engine.url, said=said, concurrency="1,3", warmup=2, requests=9)
    assert (found.url, found.model, found.engine_version) == (engine.url, "one", "0.32.0")
    assert [load.concurrency for load in found.loads] == [1, 3]
    for load in found.loads:
        assert (load.requests, load.failed, load.warmup) == (9, 0, 2)
        assert (load.prompt_tokens, load.output_tokens) == (9 * 40, 9 * 8)
        assert (load.server.prompt_tokens, load.server.output_tokens) == (9 * 40, 9 * 8)
        assert (load.tokens_per_chunk, load.notes) == (1.0, ())
        assert load.requests_per_second * load.seconds == pytest.approx(9)
        rates = (load.output_tokens_per_second, load.total_tokens_per_second)
        assert [rate * load.seconds for rate in rates] == pytest.approx([9 * 8, 9 * 48])
    (begun,) = (line for line in said if line.startswith("concurrency 3: "))
    assert re.findall(r"\d+", begun) == ["3", "2", "9"]


async def test_the_counts_asked_for_by_default(bench):
    """Four times the concurrency, at least 32; as many as in flight to warm up."""
    async with fake() as engine:
        found = await bench(
            engine.url, concurrency=[1, 9], requests=None, warmup=None, output_tokens=1
        )
    assert [(load.requests, load.warmup) for load in found.loads] == [(32, 1), (36, 9)]


async def test_failed_requests_are_shown_and_not_dropped(bench):
    """Two of ten, asked once each: they are counted, by kind, and the rest is measured."""
    faults = [{"fault": "status", "status": 500, "nth": [2, 5]}]
    async with fake(faults=faults) as engine:
        found = await bench(engine.url, requests=10)
    (load,) = found.loads
    assert (load.requests, load.failed, load.latencies.end_to_end.n) == (10, 2, 8)
    assert load.failures["ServerFaultError"].count == 2
    assert "told to refuse" in load.failures["ServerFaultError"].example
    assert load.output_tokens == load.server.output_tokens == 8 * 8
    with pytest.raises(WireError, match=r"2 of 10 .*concurrency 1"):
        require_answers(found, max_failed=0.19)
    require_answers(found, max_failed=0.2)


@pytest.mark.parametrize("headers", [{}, {"retry_after": "3600"}])
async def test_a_busy_server_is_not_waited_for(bench, headers: dict[str, str]):
    """429 is a failed request here: waiting it out would be measured as latency."""
    faults = [{"fault": "status", "status": 429, "first": 1} | headers]
    async with fake(faults=faults) as engine:
        found = await bench(engine.url)
    assert found.loads[0].failures["RateLimitedError"].count == 1
    assert found.loads[0].failed == 1


async def test_a_stream_that_breaks_off(bench):
    """Reset in the middle of the body: failed, whatever had come."""
    faults = [{"fault": "reset", "at": "body", "nth": [3]}]
    async with fake(faults=faults) as engine:
        found = await bench(engine.url)
    assert (found.loads[0].failed, found.loads[0].latencies.end_to_end.n) == (1, 5)


async def test_the_engine_dies_under_it(bench):
    """Every request after that fails at once; the figures are there, and are refused."""
    faults = [{"fault": "die", "signal": 9, "nth": [4]}]
    async with fake(faults=faults) as engine:
        found = await bench(engine.url)
    (load,) = found.loads
    assert (load.requests, load.failed, load.server) == (6, 3, None)
    with pytest.raises(WireError, match="3 of 6"):
        require_answers(found, max_failed=0.01)


@pytest.mark.slow
async def test_a_warm_up_that_fails_ends_it(bench):
    """What would fail every request is an error of its own, before anything is measured."""
    async with fake("--max-model-len", "32") as engine:
        with pytest.raises(ContextOverflowError):
            await bench(engine.url, warmup=1)
    async with fake(faults=[{"fault": "status", "status": 500, "first": 1}]) as engine:
        with pytest.raises(ServerFaultError):
            await bench(engine.url, warmup=1)


@pytest.mark.slow
async def test_answers_that_are_cut_short_are_noted(bench):
    """The server had no room for the tokens asked for: the figures are of other lengths."""
    async with fake("--max-model-len", "44") as engine:
        found = await bench(engine.url)
    assert found.loads[0].output_tokens == 6 * 4
    assert re.findall(r"\d+", found.loads[0].notes[0])[:2] == ["6", "8"]


@pytest.mark.slow
async def test_the_model_and_the_key(bench, monkeypatch):
    """Any of the server's models; the key from the environment; nothing of it in the result."""
    async with fake(env={"VLLM_API_KEY": "the-k3y"}) as engine:
        with pytest.raises(UnauthorizedError):
            await bench(engine.url)
        monkeypatch.setenv("ENGINEHOUSE_API_KEY", "the-k3y")
        found = await bench("two", url=engine.url)
        assert found.model == "two"
        assert "the-k3y" not in repr(found)
        with pytest.raises(ConfigurationError, match="'three'"):
            await bench("three", url=engine.url)


async def test_nothing_answers(bench):
    """In words, before anything is measured."""
    with pytest.raises(ConnectionFailedError):
        await bench("http://127.0.0.1:1")
