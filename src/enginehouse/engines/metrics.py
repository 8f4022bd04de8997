"""Prometheus metrics, as the engines' servers write them."""

from __future__ import annotations

import re


def read_metrics(pattern: re.Pattern[str], body: str) -> dict[str, list[float]]:
    """The values of every metric that `pattern` finds, by its two groups: a name and a value."""
    found: dict[str, list[float]] = {}
    for name, value in pattern.findall(body):
        found.setdefault(name, []).append(float(value))
    return found


def total(values: list[float] | None) -> int | None:
    """Their sum; None where there are none."""
    return int(sum(values)) if values else None
