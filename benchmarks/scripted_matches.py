"""How long matches take that need no model: python benchmarks/scripted_matches.py.

Ten rounds of Red-Black between teams of five scripts, journaled like any other match.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from interleaved import FOLDER, HEAD, interleaved, machine, mean, output, paired_ratio, row, say

_FEW, _MANY = 1000, 10_000


def main(arguments: Sequence[str]) -> None:
    """Measure and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    asked = parser.parse_args(arguments)
    say(machine())
    seconds: list[float] = []

    def peak(matches: int) -> float:
        took, most = output([sys.executable, FOLDER / "our_scripted_matches.py", matches])
        if matches == _MANY:
            seconds.append(took)
        return most

    few, many = interleaved(
        {f"{count:,} matches": lambda count=count: peak(count) for count in (_FEW, _MANY)},
        rounds=asked.rounds,
    ).values()
    print(HEAD)
    print(row(f"{_MANY:,} scripted matches, seconds", mean(seconds), at_most=60))
    figure = f"peak memory at {_MANY:,} scripted matches / at {_FEW:,}"
    print(row(figure, paired_ratio(many, few), at_most=1.1))


if __name__ == "__main__":
    main(sys.argv[1:])
