"""Figures measured side by side: rounds, intervals, and the rows of docs/performance.md."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from scipy import stats

from enginehouse.statistics.intervals import Interval

FOLDER = Path(__file__).parent
HEAD = "| figure | measured | 95 % interval | rounds | wanted | met |\n|---|---|---|---|---|---|"


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval; `count` is the number of rounds or pairs."""

    value: float
    interval: Interval
    count: int


def interleaved(
    measures: Mapping[str, Callable[[], float]], *, rounds: int
) -> dict[str, list[float]]:
    """Every measure once per round, in turn forwards and backwards, so that drift cancels out.

    Prints each result to standard error.
    """
    results: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(rounds):
        for name in sorted(measures, key=list(measures).index, reverse=bool(number % 2)):
            results[name].append(measures[name]())
            say(f"round {number + 1} of {rounds}: {name} {results[name][-1]:,.4g}")
    return results


def mean(values: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """The mean of at least two values, with Student's t interval."""
    centre = float(np.mean(values))
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1)) * spread
    interval = Interval(
        low=centre - half, high=centre + half, confidence=confidence, method="student t"
    )
    return Estimate(centre, interval, len(values))


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Geometric mean of the ratio ours / theirs over pairs of positive numbers, one a round.

    The interval is that of the mean of log(ours / theirs): a ratio's errors multiply, and a
    bootstrap of a handful of pairs would be too narrow.
    """
    logs = mean(np.log(np.asarray(ours) / np.asarray(theirs)).tolist())
    interval = Interval(
        low=math.exp(logs.interval.low),
        high=math.exp(logs.interval.high),
        confidence=logs.interval.confidence,
        method="student t of logarithms",
    )
    return Estimate(math.exp(logs.value), interval, logs.count)


def row(
    figure: str,
    found: Estimate,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> str:
    """A line of the table: a bound is asked of the interval's nearer end, not of the mean."""
    low, high = found.interval.low, found.interval.high
    wanted, met = "", ""
    if at_least is not None:
        wanted, met = f"≥ {at_least:g}", "yes" if low >= at_least else "no"
    if at_most is not None:
        wanted, met = f"≤ {at_most:g}", "yes" if high <= at_most else "no"
    cells = (figure, _short(found.value), f"{_short(low)} to {_short(high)}", str(found.count))
    return f"| {' | '.join((*cells, wanted, met))} |"


def _short(value: float) -> str:
    """Three significant digits, never as a power of ten."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def machine() -> str:
    """This machine in a line."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [n for n in information.read_text().splitlines() if n.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    memory = psutil.virtual_memory().total / 2**30
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores, {model}, {memory:.0f} GiB, {platform.system()} "
        f"{platform.release()}, Python {platform.python_version()}; "
        f"load average at the start {load:.2f}"
    )


def output(command: Sequence[object], *, env: Mapping[str, str] | None = None) -> list[float]:
    """The numbers on the last line that a program prints; ends the benchmark if it fails."""
    done = subprocess.run(
        [*map(str, command)],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{command[1]} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return [float(number) for number in done.stdout.splitlines()[-1].split()]


def say(message: str) -> None:
    """A line on standard error; standard output is the table's."""
    print(message, file=sys.stderr, flush=True)
