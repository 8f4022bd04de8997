from __future__ import annotations

from typing import Any

import pytest

from enginehouse.bench.closed_loop import TimedRequest
from enginehouse.bench.load_figures import summarise
from enginehouse.bench.settings import BenchSettings
from enginehouse.core.errors import ConnectionFailedError, ServerFaultError, WireError
from enginehouse.core.sampler import Load
from enginehouse.results.benchmark import LoadMeasurement

SETTINGS = BenchSettings(input_tokens=100, output_tokens=3)


def timed(started: float, *chunks: float, tokens: int = 3) -> TimedRequest:
    """A good request; the chunks' times are after its start, and it ends 0.5 s after the last."""
    times = [started + chunk for chunk in chunks]
    return TimedRequest(
        started=started,
        ended=times[-1] + 0.5,
        chunks=times,
        prompt_tokens=100,
        output_tokens=tokens,
    )


def failed(started: float, error: WireError) -> TimedRequest:
    """One that failed after a second."""
    return TimedRequest(started=started, ended=started + 1, failure=error)


def summary(*requests: TimedRequest, **changes: Any) -> LoadMeasurement:
    """The figures of a loop without a server's counters."""
    given = {"client_cpu": 0.1, "before": None, "after": None} | changes
    return summarise(requests, SETTINGS, concurrency=2, warmup=2, **given)


def test_rates_are_over_the_whole_time():
    """From the first start to the last end: 6.5 s, two answers, six tokens."""
    found = summary(timed(0.0, 1.0, 2.0, 3.0), timed(1.0, 2.0, 4.0, 5.0))
    assert found.seconds == 6.5
    assert found.requests_per_second == pytest.approx(2 / 6.5)
    assert found.output_tokens_per_second == pytest.approx(6 / 6.5)
    assert found.total_tokens_per_second == pytest.approx(206 / 6.5)
    assert (found.prompt_tokens, found.output_tokens, found.tokens_per_chunk) == (200, 6, 1.0)
    assert found.notes == ()


def test_latencies_are_those_of_the_definition():
    """TTFT 1 and 2, E2EL 3 and 5, TPOT their difference over two tokens, ITL every gap."""
    found = summary(timed(0.0, 1.0, 2.0, 3.0), timed(1.0, 2.0, 4.0, 5.0)).latencies
    assert (found.first_token.p50, found.first_token.n) == (1.5, 2)
    assert found.end_to_end.p50 == 4.0
    assert found.per_output_token.mean == pytest.approx((2 / 2 + 3 / 2) / 2)
    assert (found.inter_token.mean, found.inter_token.n) == (1.25, 4)


def test_one_token_has_no_time_per_token():
    """It counts for the first token, and not as 0 for those after it."""
    found = summary(timed(0.0, 1.0, tokens=1)).latencies
    assert (found.first_token.n, found.per_output_token.n, found.inter_token.n) == (1, 0, 0)


def test_failures_are_counted_by_kind():
    """They are in `requests` and in no latency; the first message of each kind is kept."""
    found = summary(
        timed(0.0, 1.0, 2.0, 3.0),
        failed(0.0, ServerFaultError("first")),
        failed(1.0, ServerFaultError("second")),
        failed(2.0, ConnectionFailedError("gone")),
    )
    assert (found.requests, found.failed) == (4, 3)
    counts = {kind: (f.count, f.example) for kind, f in found.failures.items()}
    assert counts == {"ServerFaultError": (2, "first"), "ConnectionFailedError": (1, "gone")}
    assert found.latencies.end_to_end.n == 1


def test_all_failed():
    """Rates are 0, latencies unknown; nothing is divided by nothing."""
    found = summary(failed(0.0, ServerFaultError("no")))
    assert (found.requests_per_second, found.output_tokens_per_second) == (0, 0)
    assert (found.tokens_per_chunk, found.latencies.end_to_end.mean) == (None, None)


def load(**counters: int) -> Load:
    """Counters of an idle server."""
    return Load(running=0, waiting=0, **counters)


GOOD = (timed(0.0, 1.0, 2.0, 3.0), timed(1.0, 2.0, 4.0, 5.0))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"client_cpu": 0.95}, "this client used 95% of a core"),
        ({"after": load(preemptions=3)}, "preempted 3 requests"),
        ({"after": load(prefix_cache_queries=200, prefix_cache_hits=50)}, "25% of the prompts'"),
        ({"after": load(generation_tokens=16)}, "10 more tokens"),
    ],
)
def test_what_distorts_is_said(changes: dict[str, Any], said: str):
    """A busy client, preemption, a prefix cache that helped, and somebody else's requests."""
    zero = load(preemptions=0, prefix_cache_queries=0, prefix_cache_hits=0, generation_tokens=0)
    (note,) = summary(*GOOD, before=zero, **{"after": zero} | changes).notes
    assert said in note


def test_what_is_as_it_should_be_is_not():
    """Counters that agree, and a server that was started again, are no news."""
    agreed = summary(*GOOD, before=load(generation_tokens=10), after=load(generation_tokens=16))
    assert (agreed.notes, agreed.server.output_tokens) == ((), 6)
    again = summary(*GOOD, before=load(generation_tokens=10), after=load(generation_tokens=6))
    assert (again.notes, again.server.output_tokens) == ((), None)


def test_other_lengths_and_chunks_of_several_tokens():
    """Both change what the latencies mean."""
    notes = summary(timed(0.0, 1.0, 2.0, tokens=4)).notes
    assert "3 tokens" in notes[0]
    assert "2.0 tokens" in notes[1]
