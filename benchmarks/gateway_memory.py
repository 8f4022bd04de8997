"""The gateway's memory over 200,000 requests: python benchmarks/gateway_memory.py.

wrk asks it before an nginx that answers at once; its resident memory is read after every tenth.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fixed_server import fixed_server, wrk
from interleaved import HEAD, Estimate, machine, row, say
from proxies import our_gateway

from enginehouse.statistics.intervals import Interval


def main(arguments: Sequence[str]) -> None:
    """Measure and print the row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--concurrency", type=int, default=256)
    asked = parser.parse_args(arguments)
    say(machine())
    readings: list[tuple[float, float]] = []
    with (
        fixed_server() as url,
        our_gateway(url, "--concurrency", "256") as gateway,
    ):
        done = 0.0
        while done < asked.requests:
            done += 2 * wrk(gateway.url, concurrency=asked.concurrency, seconds=2)
            if done >= asked.requests or done * 10 > asked.requests * (len(readings) + 1):
                readings.append((done, gateway.resident()))
                say(f"after {readings[-1][0]:,.0f} requests: {readings[-1][1]:.1f} MB")
    (early, first), (late, last) = readings[0], readings[-1]
    ratio = last / first
    print(HEAD)
    exact = Interval(low=ratio, high=ratio, confidence=0.95, method="one reading")
    figure = f"gateway, memory after {late:,.0f} requests / after {early:,.0f}"
    print(row(figure, Estimate(ratio, exact, 1), at_most=1.05))


if __name__ == "__main__":
    main(sys.argv[1:])
