"""enginehouse bench."""

from __future__ import annotations

from enginehouse.cli.console import Console, run_async
from enginehouse.cli.options import Given, with_config_options
from enginehouse.commands.configuration import BenchConfig
from enginehouse.runtime.context import Context


@with_config_options(BenchConfig)
def bench(*, given: Given[BenchConfig], console: Console) -> None:
    """Measure throughput and latency under load, of a model or of the server at a URL."""
    config = given.settings()
    from enginehouse.commands.bench import require_answers, run_benchmark
    from enginehouse.report.benchmark_table import print_benchmark

    benchmark = run_async(run_benchmark(config, Context(notify=console.note)))
    console.result(benchmark, text=lambda: print_benchmark(benchmark))
    require_answers(benchmark, max_failed=config.settings.max_failed)
