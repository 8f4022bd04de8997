"""What `enginehouse bench` measured, as plain data (every struct here is JSON) and as tables."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import IO

import msgspec
from rich.text import Text

from enginehouse.report.terminal import make_console, print_rows
from enginehouse.statistics.percentiles import Percentiles, needed

_BLANK = "-"


class Latencies(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds, over the requests that succeeded, by the definitions of vLLM's `vllm bench serve`.

    `first_token` (TTFT): from sending a request to reading the chunk with its first token.
    `per_output_token` (TPOT): (end_to_end - first_token) / (output tokens - 1), of each request
    with more than one. `inter_token` (ITL): every gap between two chunks with tokens of one answer.
    `end_to_end` (E2EL): from sending a request to reading the chunk with its last token.
    """

    first_token: Percentiles
    per_output_token: Percentiles
    inter_token: Percentiles
    end_to_end: Percentiles


class FailedRequests(msgspec.Struct, frozen=True, kw_only=True):
    """How many failed in one way (the error's class), and the first one's message."""

    count: int
    example: str


class ServerCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What the server itself counted meanwhile, whoever asked; None where it does not say."""

    prompt_tokens: int | None
    output_tokens: int | None
    preemptions: int | None
    prefix_cache_queries: int | None
    prefix_cache_hits: int | None


class LoadMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """One concurrency: `requests` were asked, `failed` of them failed.

    Token counts are the server's (usage, else token ids) of the requests that succeeded; rates are
    theirs over `seconds`, from the first request's start to the last one's end, so the ramps at
    both ends are in it. `client_cpu` is this process's share of one core.
    """

    concurrency: int
    requests: int
    failed: int
    failures: Mapping[str, FailedRequests]
    warmup: int
    seconds: float
    requests_per_second: float
    output_tokens_per_second: float
    total_tokens_per_second: float
    prompt_tokens: int
    output_tokens: int
    tokens_per_chunk: float | None
    latencies: Latencies
    client_cpu: float
    server: ServerCounts | None
    notes: tuple[str, ...]


class Benchmark(msgspec.Struct, frozen=True, kw_only=True):
    """A server under a closed loop of requests, all alike, at one concurrency after another.

    Of a server that is not ours, what it does not tell is None.
    """

    url: str
    model: str
    engine: str | None
    engine_version: str | None
    engine_arguments: tuple[str, ...] | None
    input_tokens: int
    output_tokens: int
    seed: int
    loads: tuple[LoadMeasurement, ...]


def print_benchmark(benchmark: Benchmark, *, file: IO[str] | None = None) -> None:
    """Print rates, then latencies in milliseconds, then what is to be known of them."""
    console = make_console(file or sys.stdout)
    engine = f"{benchmark.engine or 'unknown engine'} {benchmark.engine_version or ''}".strip()
    console.print(Text(f"{benchmark.model} on {engine} at {benchmark.url}", style="bold"))
    console.print(
        Text(
            f"prompts of {benchmark.input_tokens:,} tokens, answers of "
            f"{benchmark.output_tokens:,}; greedy, streamed; seed {benchmark.seed}"
        )
    )
    console.print()
    rates = ("requests/s", "output tok/s", "total tok/s")
    columns = ["concurrency", "requests", "failed", "seconds", *rates, "client CPU"]
    print_rows(columns, map(_rates, benchmark.loads), file=file, right=range(len(columns)))
    console.print()
    columns = ["concurrency", "latency, ms", "n", "mean", "p50", "p95", "p99"]
    rows = [row for load in benchmark.loads for row in _latencies(load)]
    print_rows(columns, rows, file=file, right=(0, *range(2, len(columns))))
    notes = list(_notes(benchmark))
    if notes:
        console.print()
    for note in notes:
        console.print(Text(f"note: {note}", style="yellow"))


def _rates(load: LoadMeasurement) -> tuple[str, ...]:
    return (
        f"{load.concurrency:,}",
        f"{load.requests:,}",
        f"{load.failed:,}",
        f"{load.seconds:,.1f}",
        f"{load.requests_per_second:,.2f}",
        f"{load.output_tokens_per_second:,.1f}",
        f"{load.total_tokens_per_second:,.1f}",
        f"{load.client_cpu:.0%}",
    )


def _latencies(load: LoadMeasurement) -> Iterator[tuple[str, ...]]:
    latencies = load.latencies
    named = (
        ("first token (TTFT)", latencies.first_token),
        ("per output token (TPOT)", latencies.per_output_token),
        ("inter-token (ITL)", latencies.inter_token),
        ("end to end (E2EL)", latencies.end_to_end),
    )
    for place, (name, found) in enumerate(named):
        seconds = (found.mean, found.p50, found.p95, found.p99)
        cells = (_BLANK if value is None else f"{value * 1000:,.1f}" for value in seconds)
        yield (f"{load.concurrency:,}" if place == 0 else "", name, f"{found.n:,}", *cells)


def _notes(benchmark: Benchmark) -> Iterator[str]:
    blank = any(load.latencies.end_to_end.p99 is None for load in benchmark.loads)
    if blank:
        yield (
            f"{_BLANK} is a percentile of too few values: p95 needs {needed(95)}, p99 needs "
            f"{needed(99)} (--requests)"
        )
    for load in benchmark.loads:
        where = f"concurrency {load.concurrency}: "
        for kind, failures in load.failures.items():
            yield f"{where}{failures.count:,} failed ({kind}): {failures.example}"
        yield from (where + note for note in load.notes)
