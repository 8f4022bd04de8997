"""enginehouse bench."""

from __future__ import annotations

from typing import Any

from enginehouse.bench.configuration import BenchConfig
from enginehouse.cli.console import Console, run_async
from enginehouse.cli.options import (
    ConfigOption,
    JsonOption,
    QuietOption,
    VerboseOption,
    with_config_options,
)
from enginehouse.deployment.configuration import merged, parse, read_yaml
from enginehouse.runtime.context import Context


@with_config_options(BenchConfig)
def bench(
    *,
    config: ConfigOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    given: dict[str, Any],
) -> None:
    """Measure a model that is served for it, or the server at a URL, under load."""
    console = Console(json=json, verbose=verbose, quiet=quiet)
    values = merged(read_yaml(config) if config else {}, given)
    settings = parse(BenchConfig, values, origin=str(config or "the command line"))
    from enginehouse.commands.bench import require_answers, run_benchmark
    from enginehouse.report.benchmark_table import print_benchmark

    benchmark = run_async(run_benchmark(settings, Context(notify=console.note)))

    console.result(benchmark, text=lambda: print_benchmark(benchmark))

    require_answers(benchmark, max_failed=settings.max_failed)
