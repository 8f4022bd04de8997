"""Client, evaluation and memory against another commit: python benchmarks/other_commit.py COMMIT.

Both commits run their own programs (our_client.py, our_evaluation.py, our_memory.py) in this
environment in turn, against one nginx that answers at once. The ratios go to standard output: above
1 is better for the rates, below 1 for memory.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from fixed_server import fixed_server
from interleaved import FOLDER, HEAD, interleaved, machine, output, paired_ratio, row, say
from sums import write_task

_ROOT = FOLDER.parent


def main(arguments: Sequence[str]) -> None:
    """Measure and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--concurrency", type=int, default=256)
    asked = parser.parse_args(arguments)
    say(machine())

    def rate(root: Path, program: str, *words: object) -> float:
        with tempfile.TemporaryDirectory() as home:
            env = {"ENGINEHOUSE_HOME": home, "PYTHONPATH": str(root / "src")}
            return output([sys.executable, root / "benchmarks" / program, *words], env=env)[0]

    with (
        fixed_server() as url,
        tempfile.TemporaryDirectory() as folder,
        _checked_out(asked.commit) as other,
    ):
        task = write_task(Path(folder), items=asked.requests)
        many = [asked.requests, asked.concurrency]
        words: dict[str, list[object]] = {
            "our_client.py": [url, *many],
            "our_evaluation.py": [url, task, *many],
            "our_memory.py": [
                *("eval", "--url", url, "--task", task, "--concurrency", asked.concurrency),
                *("--quiet", "--json"),
            ],
        }
        measures: dict[str, Callable[[], float]] = {
            f"{name} {program}": partial(rate, root, program, *words[program])
            for program in words
            for name, root in (("this", _ROOT), ("other", other))
        }
        found = interleaved(measures, rounds=asked.rounds)
    print(HEAD)
    for program, figure in (
        ("our_client.py", "client, requests/s"),
        ("our_evaluation.py", "whole evaluation, samples/s"),
        ("our_memory.py", "evaluation, peak memory"),
    ):
        ratio = paired_ratio(found[f"this {program}"], found[f"other {program}"])
        print(row(f"this commit / {asked.commit}: {figure}", ratio))


@contextmanager
def _checked_out(commit: str) -> Iterator[Path]:
    """The files of a commit, in a folder of their own."""
    git = ["git", "-C", str(_ROOT)]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        archive = subprocess.run([*git, "archive", commit], check=True, capture_output=True)
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(root, filter="data")
        yield root


if __name__ == "__main__":
    main(sys.argv[1:])
