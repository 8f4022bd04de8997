"""What the gateway has done, in numbers, and in the text format of Prometheus."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from typing import Final

import msgspec

from enginehouse.core.sampler import Usage

_BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class GatewayFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway has done so far.

    `requests` were answered, `replayed` of them from the journal, and `completed` by the engine,
    without an error; `abandoned` by their clients, `refused` unread. `broken` streams ended with an
    error after their first byte. Tokens are those that the engine stated in its answers; streams
    state them where their client asks for it.
    """

    requests: int
    in_flight: int
    replayed: int
    completed: int
    abandoned: int
    refused: int
    broken: int
    errors: int
    prompt_tokens: int
    generated_tokens: int


class Metrics:
    """Counts requests, and how long each took."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.replayed = 0
        self.completed = 0
        self.abandoned = 0
        self.broken = 0
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self._answered: Counter[tuple[str, int]] = Counter()
        self._refused: Counter[int] = Counter()
        self._buckets = [0] * (len(_BOUNDS) + 1)
        self._seconds = 0.0

    def begin(self) -> float:
        """A request is in flight; returns what `end` is given."""
        self.in_flight += 1
        return time.perf_counter()

    def end(self, started: float, *, path: str, status: int) -> None:
        """The request has ended with an answer, or with none (status 0)."""
        self.in_flight -= 1
        elapsed = time.perf_counter() - started
        self._answered[path, status] += 1
        self._buckets[bisect_left(_BOUNDS, elapsed)] += 1
        self._seconds += elapsed

    def count_tokens(self, usage: Usage) -> None:
        """Add what the engine says an answer took."""
        self.prompt_tokens += usage.prompt_tokens
        self.generated_tokens += usage.completion_tokens

    def refuse(self, status: int) -> None:
        """A request was refused unread."""
        self._refused[status] += 1

    def figures(self) -> GatewayFigures:
        """The figures so far."""
        return GatewayFigures(
            requests=sum(n for (_, status), n in self._answered.items() if status),
            in_flight=self.in_flight,
            replayed=self.replayed,
            completed=self.completed,
            abandoned=self.abandoned,
            refused=self._refused.total(),
            broken=self.broken,
            errors=sum(n for (_, status), n in self._answered.items() if status >= 400),
            prompt_tokens=self.prompt_tokens,
            generated_tokens=self.generated_tokens,
        )

    def text(self) -> bytes:
        """The figures as Prometheus reads them."""
        return ("\n".join(self._lines()) + "\n").encode()

    def _lines(self) -> Iterator[str]:
        name = "enginehouse_gateway_requests_total"
        yield f"# HELP {name} Requests, by path and status; 0 is a client that left."
        yield f"# TYPE {name} counter"
        for (path, status), count in sorted(self._answered.items()):
            yield f'{name}{{path="{path}",status="{status}"}} {count}'
        name = "enginehouse_gateway_refused_total"
        yield f"# HELP {name} Requests that were refused unread, by status."
        yield f"# TYPE {name} counter"
        for status, count in sorted(self._refused.items()):
            yield f'{name}{{status="{status}"}} {count}'
        for what, words, kind, value in (
            ("in_flight", "Requests that are being answered.", "gauge", self.in_flight),
            ("replayed_total", "Answers from the journal.", "counter", self.replayed),
            ("abandoned_total", "Requests whose client left.", "counter", self.abandoned),
            ("broken_streams_total", "Streams that ended with an error.", "counter", self.broken),
            ("prompt_tokens_total", "Tokens of prompts.", "counter", self.prompt_tokens),
            ("generated_tokens_total", "Tokens of answers.", "counter", self.generated_tokens),
        ):
            yield f"# HELP enginehouse_gateway_{what} {words}"
            yield f"# TYPE enginehouse_gateway_{what} {kind}"
            yield f"enginehouse_gateway_{what} {value}"
        name = "enginehouse_gateway_request_seconds"
        yield f"# HELP {name} Seconds from a request's last byte to its answer's."
        yield f"# TYPE {name} histogram"
        total = 0
        for bound, count in zip((*_BOUNDS, "+Inf"), self._buckets, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._seconds:.6f}"
        yield f"{name}_count {total}"
