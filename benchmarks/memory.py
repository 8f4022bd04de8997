"""How much memory an evaluation takes as it grows: python benchmarks/memory.py.

`enginehouse eval` is run as its users run it, against an nginx that answers at once. 100,000
samples are 10,000 items asked ten times, so that the data, which are held in memory whole, are
the same. What a data set of 100,000 items takes is said on standard error.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fixed_server import fixed_server
from interleaved import FOLDER, HEAD, interleaved, machine, mean, output, paired_ratio, row, say
from sums import write_task

_ITEMS = 10_000
_LIMIT = 300.0


def main(arguments: Sequence[str]) -> None:
    """Measure and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args(arguments)
    say(machine())
    with fixed_server() as url, tempfile.TemporaryDirectory() as folder:
        measures = {
            f"{samples * _ITEMS:,} samples": partial(
                _peak, url, Path(folder), items=_ITEMS, samples=samples
            )
            for samples in (1, 10)
        }
        small, large = interleaved(measures, rounds=asked.rounds).values()
        many = _peak(url, Path(folder), items=10 * _ITEMS, samples=1)
    say(f"{10 * _ITEMS:,} items once: {many:.0f} MB")
    print(HEAD)
    figure = f"peak memory at {10 * _ITEMS:,} samples / at {_ITEMS:,}"
    print(row(figure, paired_ratio(large, small), at_most=1.1))
    print(row(f"peak memory at {10 * _ITEMS:,} samples, MB", mean(large), at_most=_LIMIT))


def _peak(url: str, folder: Path, *, items: int, samples: int) -> float:
    """The highest resident memory of one run, in MB (10⁶ bytes)."""
    task = write_task(folder, items=items)
    options = ["--url", url, "--task", str(task), "--samples", str(samples), "--concurrency", "256"]
    program = [sys.executable, FOLDER / "our_memory.py"]
    with tempfile.TemporaryDirectory() as home:
        command = [*program, "eval", *options, "--quiet", "--json"]
        return output(command, env={"ENGINEHOUSE_HOME": home})[0]


if __name__ == "__main__":
    main(sys.argv[1:])
