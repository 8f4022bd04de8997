"""The result of a benchmark of a server."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from enginehouse.statistics.percentiles import Percentiles


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
    """The server's own counters over that time, for all clients; None if not reported."""

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
    """A server under a closed loop of identical requests, at one concurrency after another.

    For an external server, what it does not report is None.
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
