"""What `enginehouse bench` measured."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import IO

from rich.text import Text

from enginehouse.report.terminal import make_console, print_rows
from enginehouse.results.benchmark import Benchmark, LoadMeasurement
from enginehouse.statistics.percentiles import needed

_BLANK = "-"


def print_benchmark(benchmark: Benchmark, *, file: IO[str] | None = None) -> None:
    """Print rates, then latencies in milliseconds, then notes on them."""
    console = make_console(file or sys.stdout)
    engine = f"{benchmark.engine or 'unknown engine'} {benchmark.engine_version or ''}".strip()
    console.print(Text(f"{benchmark.model} on {engine} at {benchmark.url}", style="bold"))
    console.print(
        Text(
            f"prompts of {_tokens(benchmark.input_tokens)}, answers of "
            f"{_tokens(benchmark.output_tokens)}; greedy, streamed; seed {benchmark.seed}"
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


def _tokens(count: int) -> str:
    return f"{count:,} token{'' if count == 1 else 's'}"


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
    for place, (name, values) in enumerate(named):
        seconds = (values.mean, values.p50, values.p95, values.p99)
        cells = (_BLANK if value is None else f"{value * 1000:,.1f}" for value in seconds)
        yield (f"{load.concurrency:,}" if place == 0 else "", name, f"{values.n:,}", *cells)


def _notes(benchmark: Benchmark) -> Iterator[str]:
    if any(load.latencies.end_to_end.p99 is None for load in benchmark.loads):
        yield (
            f"{_BLANK} stands for a percentile of too few values: p95 needs {needed(95)}, "
            f"p99 needs {needed(99)} (see --requests)"
        )
    for load in benchmark.loads:
        where = f"concurrency {load.concurrency}: "
        for kind, failures in load.failures.items():
            yield f"{where}{failures.count:,} failed ({kind}): {failures.example}"
        yield from (where + note for note in load.notes)
