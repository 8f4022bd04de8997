from __future__ import annotations

import io
import re
from typing import Any

import msgspec
import pytest

from enginehouse.report.benchmark_table import print_benchmark
from enginehouse.results.benchmark import Benchmark, FailedRequests, Latencies, LoadMeasurement
from enginehouse.statistics.percentiles import percentiles


def load(concurrency: int = 8, *, samples: int = 30, **changes: Any) -> LoadMeasurement:
    """A measurement in which every latency is 0.25 s."""
    found = percentiles([0.25] * samples)
    given = {
        "concurrency": concurrency,
        "requests": samples,
        "failed": 0,
        "failures": {},
        "warmup": 8,
        "seconds": 12.5,
        "requests_per_second": 1234.5,
        "output_tokens_per_second": 9.75,
        "total_tokens_per_second": 19.5,
        "prompt_tokens": 100,
        "output_tokens": 100,
        "tokens_per_chunk": 1.0,
        "latencies": Latencies(
            first_token=found, per_output_token=found, inter_token=found, end_to_end=found
        ),
        "client_cpu": 0.07,
        "server": None,
        "notes": (),
    }
    return LoadMeasurement(**given | changes)


def benchmark(*loads: LoadMeasurement) -> Benchmark:
    """Of somebody else's server."""
    return Benchmark(
        url="http://127.0.0.1:8000",
        model="tiny",
        engine=None,
        engine_version=None,
        engine_arguments=None,
        input_tokens=1024,
        output_tokens=64,
        seed=7,
        loads=loads,
    )


def printed(*loads: LoadMeasurement) -> str:
    """What a pipe gets."""
    file = io.StringIO()
    print_benchmark(benchmark(*loads), file=file)
    return file.getvalue()


def test_all_figures_are_there():
    """Rates once for each concurrency, four latencies in milliseconds, each with its n."""
    text = printed(load(1), load(8))
    for fact in ("tiny", "http://127.0.0.1:8000", "1,024 tokens", "64 tokens", "seed 7"):
        assert fact in text
    rows = [line.split() for line in text.splitlines()]
    assert ["8", "30", "0", "12.5", "1,234.50", "9.8", "19.5", "7%"] in rows
    assert rows.count(["end", "to", "end", "(E2EL)", "30", "250.0", "250.0", "250.0", "-"]) == 2
    assert ["8", "first", "token", "(TTFT)", "30", "250.0", "250.0", "250.0", "-"] in rows
    assert sum("(TPOT)" in line or "(ITL)" in line for line in text.splitlines()) == 4


def test_a_blank_percentile_is_explained():
    """Only where there is one."""
    assert re.search("p95 .* 20, p99 .* 100", printed(load(samples=99)))
    assert "note:" not in printed(load(samples=100))


def test_failures_and_notes_name_their_concurrency():
    """What distorts a figure stands below the tables."""
    failures = {"ServerFaultError": FailedRequests(count=3, example="the server answered 500")}
    text = printed(load(samples=100, failures=failures, notes=("a busy client",)))
    notes = [line for line in text.splitlines() if line.startswith("note: concurrency 8: ")]
    assert "a busy client" in notes[1]
    for part in ("3 failed", "ServerFaultError", "the server answered 500"):
        assert part in notes[0]


@pytest.mark.parametrize("samples", [0, 1])
def test_nothing_was_answered(samples: int):
    """Blanks, no error."""
    assert "first token (TTFT)" in printed(load(samples=samples, tokens_per_chunk=None))


def test_json_holds_everything():
    """What --json prints comes back as it was."""
    whole = benchmark(load(failures={"X": FailedRequests(count=1, example="y")}))
    assert msgspec.json.decode(msgspec.json.encode(whole), type=Benchmark) == whole
