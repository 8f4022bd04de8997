"""An experiment's figures as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from enginehouse.results.experiment import Estimate, ExperimentReport
from enginehouse.statistics.intervals import Interval

_COLUMNS = (
    "what",
    "pairing",
    "seat",
    "team",
    "other",
    "measure",
    "value",
    "low",
    "high",
    "method",
    "count",
    "p",
    "p_corrected",
    "detectable",
)
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def experiment_csv(report: ExperimentReport) -> str:
    """Every figure as one row of CSV with a header; empty where there is no value.

    `what` is team, seat, pairing, rating, "difference in place" or "difference head to head"; a
    difference is `team` - `other`, and its `count` is that of seeds. Shares are from 0 to 1. Text
    that a spreadsheet would take for a formula gets a leading apostrophe.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in _rows(report):
        writer.writerow({name: _harmless(value) for name, value in row.items()})
    return stream.getvalue()


def _rows(report: ExperimentReport) -> Iterator[dict[str, object]]:
    for team in report.teams:
        for name, estimate in team.figures.items():
            yield {"what": "team", "team": team.team, "measure": name, **_of(estimate)}
    for pairing in report.pairings:
        place = {"what": "pairing", "pairing": pairing.pairing}
        yield {**place, "measure": "total", **_of(pairing.total)}
        if pairing.welfare is not None:
            yield {**place, "measure": "welfare", **_of(pairing.welfare)}
        for seat in pairing.seats:
            place = {"what": "seat", "pairing": pairing.pairing, "seat": seat.seat}
            for name, estimate in seat.figures.items():
                yield {**place, "team": seat.team, "measure": name, **_of(estimate)}
    for difference in report.differences:
        result = difference.result
        yield {
            "what": f"difference {difference.comparison}",
            "team": difference.second,
            "other": difference.first,
            "measure": difference.measure,
            "value": result.difference,
            "count": result.pairs,
            "p": result.p_value,
            "p_corrected": difference.p_corrected,
            "detectable": result.detectable,
            **_ends(result.interval),
        }
    for rating in report.ratings:
        yield {
            "what": "rating",
            "team": rating.team,
            "measure": "elo",
            "value": rating.rating.value,
            "count": rating.wins + rating.ties + rating.losses,
            **_ends(rating.rating.interval),
        }


def _of(estimate: Estimate) -> dict[str, object]:
    return {"value": estimate.value, "count": estimate.count, **_ends(estimate.interval)}


def _ends(interval: Interval | None) -> dict[str, object]:
    if interval is None:
        return {}
    return {"low": interval.low, "high": interval.high, "method": interval.method}


def _harmless(value: object) -> object:
    """A cell that a spreadsheet shows and does not calculate."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULAS) else value
