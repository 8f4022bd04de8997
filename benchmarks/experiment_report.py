"""How long the report of an experiment takes: python benchmarks/experiment_report.py.

`enginehouse play analyze` is run as its users run it, start-up included, on experiments between
scripts: ten rounds of Red-Black, seats swapped on the same seeds.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from interleaved import FOLDER, HEAD, interleaved, machine, mean, output, paired_ratio, row, say

_FEW, _MANY = 1000, 10_000
_FILE = """
experiment_name: report
num_games: {matches}
seats: paired
game: {{name: red_black, team_size: 5}}
team_a: {{agents: random}}
team_b: {{agents: tit for tat}}
"""


def main(arguments: Sequence[str]) -> None:
    """Measure and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    asked = parser.parse_args(arguments)
    say(machine())
    seconds: list[float] = []
    of_cpu: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        homes = {count: _played(Path(folder) / str(count), count) for count in (_FEW, _MANY)}

        def peak(matches: int) -> float:
            home = homes[matches]
            (run,) = (home / "state/runs").iterdir()
            command = [sys.executable, FOLDER / "our_memory.py", "play", "analyze", run, "--json"]
            began, cpu = time.perf_counter(), _cpu()
            (most,) = output(command, env={"ENGINEHOUSE_HOME": str(home)})
            if matches == _MANY:
                seconds.append(time.perf_counter() - began)
                of_cpu.append(_cpu() - cpu)
            return most

        few, many = interleaved(
            {f"{count:,} matches": lambda count=count: peak(count) for count in homes},
            rounds=asked.rounds,
        ).values()
    print(HEAD)
    print(row(f"report of {_MANY:,} matches, seconds", mean(seconds), at_most=5))
    print(row(f"report of {_MANY:,} matches, CPU seconds", mean(of_cpu), at_most=5))
    print(row(f"peak memory of it, MB, at {_MANY:,} matches", mean(many)))
    print(row(f"peak memory of it at {_MANY:,} matches / at {_FEW:,}", paired_ratio(many, few)))


def _cpu() -> float:
    """CPU seconds of the programs that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _played(home: Path, matches: int) -> Path:
    """A home with one experiment, of so many matches in both seatings together."""
    home.mkdir()
    file = home / "experiment.yaml"
    file.write_text(_FILE.format(matches=matches // 2))
    subprocess.run(
        [sys.executable, "-m", "enginehouse", "play", str(file), "--quiet", "--json"],
        env={**os.environ, "ENGINEHOUSE_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return home


if __name__ == "__main__":
    main(sys.argv[1:])
