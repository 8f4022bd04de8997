"""From timed requests to rates and latencies, and to notes on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from enginehouse.bench.closed_loop import TimedRequest
from enginehouse.bench.settings import BenchSettings
from enginehouse.core.sampler import Load
from enginehouse.results.benchmark import FailedRequests, Latencies, LoadMeasurement, ServerCounts
from enginehouse.statistics.percentiles import percentiles

BUSY_CLIENT = 0.9  # of a core
_NOTEWORTHY = 0.01  # of all tokens; a supervisor's canaries are fewer
_SINGLE = 1.05  # tokens per chunk that still counts as one


def summarise(
    timed: Sequence[TimedRequest],
    settings: BenchSettings,
    *,
    concurrency: int,
    warmup: int,
    client_cpu: float,
    before: Load | None,
    after: Load | None,
) -> LoadMeasurement:
    """The figures of one closed loop; `client_cpu` in cores, `before` and `after` the server's."""
    good = [request for request in timed if request.failure is None]
    seconds = max(r.ended for r in timed) - min(r.started for r in timed)
    prompt_tokens = sum(r.prompt_tokens or settings.input_tokens for r in good)
    output_tokens = sum(r.output_tokens for r in good)
    chunks = sum(len(r.chunks) for r in good)
    server = _counted(before, after)
    return LoadMeasurement(
        concurrency=concurrency,
        requests=len(timed),
        failed=len(timed) - len(good),
        failures=_failures(timed),
        warmup=warmup,
        seconds=seconds,
        requests_per_second=len(good) / seconds,
        output_tokens_per_second=output_tokens / seconds,
        total_tokens_per_second=(prompt_tokens + output_tokens) / seconds,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        tokens_per_chunk=output_tokens / chunks if chunks else None,
        latencies=_latencies(good),
        client_cpu=client_cpu,
        server=server,
        notes=(
            *_notes_on_client(good, settings, client_cpu=client_cpu),
            *(_notes_on_server(server, ours=None if len(good) < len(timed) else output_tokens)),
        ),
    )


def _latencies(good: Sequence[TimedRequest]) -> Latencies:
    per_output_token = [
        (r.end_to_end - r.first_token) / (r.output_tokens - 1) for r in good if r.output_tokens > 1
    ]
    return Latencies(
        first_token=percentiles([r.first_token for r in good]),
        per_output_token=percentiles(per_output_token),
        inter_token=percentiles([gap for r in good for gap in r.gaps]),
        end_to_end=percentiles([r.end_to_end for r in good]),
    )


def _failures(timed: Sequence[TimedRequest]) -> dict[str, FailedRequests]:
    errors = [request.failure for request in timed if request.failure]
    counts = Counter(type(error).__name__ for error in errors)
    first = {type(error).__name__: error for error in reversed(errors)}
    return {
        kind: FailedRequests(count=count, example=first[kind].message)
        for kind, count in counts.most_common()
    }


def _counted(before: Load | None, after: Load | None) -> ServerCounts | None:
    if before is None or after is None:
        return None

    def grown(early: int | None, late: int | None) -> int | None:
        return None if early is None or late is None or late < early else late - early

    return ServerCounts(
        prompt_tokens=grown(before.prompt_tokens, after.prompt_tokens),
        output_tokens=grown(before.generation_tokens, after.generation_tokens),
        preemptions=grown(before.preemptions, after.preemptions),
        prefix_cache_queries=grown(before.prefix_cache_queries, after.prefix_cache_queries),
        prefix_cache_hits=grown(before.prefix_cache_hits, after.prefix_cache_hits),
    )


def _notes_on_client(
    good: Sequence[TimedRequest], settings: BenchSettings, *, client_cpu: float
) -> Iterator[str]:
    if client_cpu > BUSY_CLIENT:
        yield f"this client used {client_cpu:.0%} of a core: the server may be faster than shown"
    if odd := sum(r.output_tokens != settings.output_tokens for r in good):
        answers = "1 answer does" if odd == 1 else f"{odd:,} answers do"
        yield f"{answers} not have the requested {settings.output_tokens:,} tokens"
    chunks = sum(len(r.chunks) for r in good)
    tokens = sum(r.output_tokens for r in good)
    if chunks and tokens / chunks > _SINGLE:
        yield (
            f"a chunk has {tokens / chunks:.1f} tokens on average: inter-token latency is the time "
            "between chunks"
        )


def _notes_on_server(server: ServerCounts | None, *, ours: int | None) -> Iterator[str]:
    """`ours`: the tokens generated for us; None if some requests failed part-way."""
    if server is None:
        return
    if server.preemptions:
        yield f"the server preempted {server.preemptions:,} requests: its KV cache was full"
    hits, queries = server.prefix_cache_hits or 0, server.prefix_cache_queries or 0
    if hits > _NOTEWORTHY * queries:
        yield f"{hits / queries:.0%} of the prompts' tokens came from the prefix cache"
    if ours is not None and (server.output_tokens or 0) > (1 + _NOTEWORTHY) * ours:
        more = (server.output_tokens or 0) - ours
        yield f"the server generated {more:,} more tokens meanwhile: someone else used it, too"
