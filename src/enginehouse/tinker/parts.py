"""Large requests are computed in parts, so that nobody waits for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from enginehouse.tinker.data import Datum, LossRequest, LossResult


def split_request(request: LossRequest, *, tokens: int) -> tuple[LossRequest, ...]:
    """Requests of consecutive datums, each of at most `tokens` tokens or of a single datum.

    Losses are sums over datums, so the gradients of the parts add up to those of the whole.
    """
    parts: list[list[Datum]] = []
    room = 0
    for datum in request.data:
        size = len(datum.tokens)
        if not parts or size > room:
            parts.append([])
            room = tokens
        parts[-1].append(datum)
        room -= size
    return tuple(replace(request, data=tuple(part)) for part in parts)


def join_results(results: Sequence[LossResult]) -> LossResult:
    """The result of the whole request; there is at least one part.

    Metrics are combined by their reduction, as the SDK combines those of chunks: a mean is weighted
    by the number of datums.
    """
    return LossResult(
        outputs=tuple(output for result in results for output in result.outputs),
        metrics={name: _join_metric(name, results) for name in results[0].metrics},
    )


def _join_metric(name: str, results: Sequence[LossResult]) -> float:
    values = [result.metrics[name] for result in results]
    reduction = name.rpartition(":")[2]
    if reduction == "sum":
        return sum(values)
    if reduction == "max":
        return max(values)
    if reduction == "min":
        return min(values)
    weights = [len(result.outputs) for result in results]
    weighted = sum(value * weight for value, weight in zip(values, weights, strict=True))
    return weighted / sum(weights)
