"""The trainer of the Tinker service against a bare PEFT loop, and four users against one another.

python benchmarks/tinker_trainer.py trains SmolLM2 in the trainer's environment, which is built on
first use: LoRAs of rank 32 on every projection and the output layer. One process takes turns
between our engine and a bare loop of torch and PEFT on the same batches of four sequences, and
between four users' sequences computed together and one after another, by the length of the
sequences. The figures are ratios of tokens per second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from interleaved import FOLDER, HEAD, machine, paired_ratio, row, say

from enginehouse.provisioning.programs import PAYLOADS
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout
from enginehouse.tinker.trainers.hf import prepare_trainer

_USUAL = 128  # tokens: where bounds are asked for
_PAYS = 1.1  # times as fast, at least, or computing users together is not worth it


def main(arguments: Sequence[str]) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=Path(__file__).name)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--dtype", default="float32", help="of the base model")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 128, 256, 512])
    asked = parser.parse_args(arguments)
    say(machine())
    context = Context(layout=Layout.from_environment(), notify=say)
    program = asyncio.run(prepare_trainer("smollm2", context=context))
    command = [program.command.argv[0], str(FOLDER / "trainer_rounds.py"), program.model.path]
    command += [asked.dtype, str(asked.threads), str(asked.rounds)]
    command += map(str, asked.lengths)
    ours: dict[tuple[str, int], list[float]] = defaultdict(list)
    theirs: dict[tuple[str, int], list[float]] = defaultdict(list)
    env = os.environ | {
        "OMP_WAIT_POLICY": "passive",  # as the service has it
        "PYTHONPATH": str(PAYLOADS),
    }
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            say(line.rstrip())
            measured = json.loads(line)
            key = (measured["figure"], measured["length"])
            tokens = 4 * measured["length"]
            ours[key].append(tokens / measured["ours"])
            theirs[key].append(tokens / measured["theirs"])
    if process.returncode:
        sys.exit(f"trainer_rounds.py ended with {process.returncode}")
    say(f"{asked.dtype}, {asked.threads} threads")
    print(HEAD)
    names = {
        "bare": ("ours / bare PEFT loop, 4 sequences of {} tokens", 0.95),
        "batched": ("four users together / in sequence, {} tokens each", 1.5),
    }
    for figure, length in sorted(ours):
        name, bound = names[figure]
        ratio = paired_ratio(ours[figure, length], theirs[figure, length])
        usual = bound if length == _USUAL else None
        print(row(name.format(length), ratio, at_least=usual))
    print(_where_it_stops_paying(ours, theirs, asked.rounds))


def _where_it_stops_paying(
    ours: Mapping[tuple[str, int], list[float]],
    theirs: Mapping[tuple[str, int], list[float]],
    rounds: int,
) -> str:
    """A line of the table with the first length at which users together are hardly faster."""
    lengths = sorted(length for figure, length in ours if figure == "batched")
    slow = [
        length
        for length in lengths
        if paired_ratio(ours["batched", length], theirs["batched", length]).value < _PAYS
    ]
    first = f"{slow[0]:,}" if slow else f"above {lengths[-1]:,}"
    figure = f"sequences from which users together are less than {_PAYS:g} times as fast, tokens"
    return f"| {figure} | {first} |  | {rounds} |  |  |"


if __name__ == "__main__":
    main(sys.argv[1:])
