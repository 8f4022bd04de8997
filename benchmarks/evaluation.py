"""A whole evaluation, Enginehouse against lm-eval and inspect_ai: python benchmarks/evaluation.py.

All ask an nginx that answers at once, the same questions with as many requests at the same time.
Ours includes reading the data, the journal, scoring and the report. lm-eval is taken twice: its
whole evaluation, and its asking alone, without building requests and scoring. inspect_ai gets
fewer samples, for it takes its time; its rate does not grow with their number (--inspect-samples).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

from fixed_server import fixed_server
from interleaved import FOLDER, HEAD, interleaved, machine, output, paired_ratio, row, say
from peer_environments import peer_command
from sums import write_task

_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def main(arguments: Sequence[str]) -> None:
    """Measure and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--samples", type=int, default=20_000, help="for Enginehouse and lm-eval")
    parser.add_argument("--inspect-samples", type=int, default=1_000)
    asked = parser.parse_args(arguments)
    say(machine())
    asking: list[float] = []
    cpu: list[float] = []

    def ours(url: str, folder: Path) -> float:
        program = [sys.executable, FOLDER / "our_evaluation.py", url, folder / "sums.yaml"]
        with tempfile.TemporaryDirectory() as home:
            numbers = [str(asked.samples), str(asked.concurrency)]
            rate, seconds = output([*program, *numbers], env={"ENGINEHOUSE_HOME": home})
        cpu.append(seconds)
        return rate

    def theirs(peer: str, program: str, samples: int, url: str, folder: Path) -> float:
        options = [url, folder / "sums.jsonl", str(samples), str(asked.concurrency)]
        with tempfile.TemporaryDirectory() as home:
            variables = _OFFLINE | {"HF_HOME": home}
            rate, *rest = output([*peer_command(peer, program), *options], env=variables)
        asking.extend(rest)
        return rate

    with fixed_server() as url, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_task(folder, items=asked.samples)
        measures: dict[str, Callable[[], float]] = {
            "ours": partial(ours, url, folder),
            "lm-eval": partial(theirs, "lm-eval", "lm_eval_chat.py", asked.samples, url, folder),
            "inspect_ai": partial(
                theirs, "inspect", "inspect_chat.py", asked.inspect_samples, url, folder
            ),
        }
        found = interleaved(measures, rounds=asked.rounds)
    say(f"ours: {median(cpu) * 1e6:,.0f} µs of CPU per sample (median)")
    say(f"lm-eval's asking alone: {median(asking):,.0f} samples/s (median)")
    print(HEAD)
    pairs = (
        ("lm-eval's asking alone", asking, 1.0),
        ("lm-eval's whole evaluation", found["lm-eval"], 1.0),
        ("inspect_ai", found["inspect_ai"], 30.0),
    )
    for peer, rates, bound in pairs:
        ratio = paired_ratio(found["ours"], rates)
        print(row(f"our whole evaluation / {peer}, samples/s", ratio, at_least=bound))


if __name__ == "__main__":
    main(sys.argv[1:])
