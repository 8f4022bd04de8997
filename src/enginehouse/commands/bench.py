"""`enginehouse bench`: a server under load, measured from outside."""

from __future__ import annotations

from enginehouse.bench.measurement import measure_loads
from enginehouse.client.open_files import most_connections, open_file_limit
from enginehouse.client.retry import Retries
from enginehouse.commands.configuration import BenchConfig
from enginehouse.core.errors import ConfigurationError, WireError
from enginehouse.deployment.opening import open_deployment
from enginehouse.deployment.samplers import make_sampler
from enginehouse.results.benchmark import Benchmark
from enginehouse.runtime.context import Context

_ONCE = Retries(attempts=1, base=0, cap=0, patience=0, endurance=0)


async def run_benchmark(config: BenchConfig, context: Context) -> Benchmark:
    """Measure every concurrency, one after another; a server of our own is stopped at the end.

    Raises what `open_deployment` does, WireError for a server that fails all of the warm-up, and
    ConfigurationError. Requests that fail later are in the result.
    """
    settings = config.settings
    _require_connections(max(settings.concurrency))
    async with open_deployment(config.plan, context, concurrency=1) as deployment:
        server = deployment.server
        async with make_sampler(
            server,
            deployment.engine,
            concurrency=max(settings.concurrency),
            model=deployment.sampler.model,
            retries=_ONCE,
        ) as sampler:
            loads = await measure_loads(sampler, settings, notify=context.notify)
    return Benchmark(
        url=server.base_url,
        model=sampler.model,
        engine=server.engine,
        engine_version=server.version,
        engine_arguments=server.command,
        input_tokens=settings.input_tokens,
        output_tokens=settings.output_tokens,
        seed=settings.seed,
        loads=loads,
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
