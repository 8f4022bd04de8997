"""The Tinker service beside a bare PEFT loop, and four of its users together beside one by one.

python benchmarks/tinker_service.py starts the service in float32 on this machine, with the real SDK
as its client (both environments are built on first use). The figures are ratios of tokens per
second of forward_backward: what its users see, HTTP and protobuf included. A user sends sequences
of one length; several lengths show where training four adapters in one pass stops paying.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from interleaved import FOLDER, HEAD, interleaved, machine, paired_ratio, row, say
from peer_environments import peer_command
from tinker_served import checkpoint_of, peer, served, trainer_environment


def main(arguments: Sequence[str]) -> None:
    """Measure and print the rows."""
    parser = argparse.ArgumentParser(description=Path(__file__).name)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--sequences", type=int, default=4, help="of each forward_backward")
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 128, 256])
    asked = parser.parse_args(arguments)
    say(machine())
    environment = trainer_environment()
    python, model = environment.executable, checkpoint_of(asked.model, environment)
    print(HEAD)
    # hf samples: it computes nothing meanwhile
    with (
        tempfile.TemporaryDirectory() as home,
        served(model, "--sampler", "hf", home=Path(home)) as url,
    ):
        for length in asked.lengths:
            with ExitStack() as stack:
                one = [asked.rank, asked.sequences, length]
                bare = [python, FOLDER / "peers/peft_steps.py", model, *one]
                user = [*peer_command("tinker", "tinker_users.py"), model, asked.rank, 1, *one[1:]]
                few = [*peer_command("tinker", "tinker_users.py"), model, asked.rank, 4, 1, length]
                peft = stack.enter_context(peer(bare))
                single = stack.enter_context(peer(user, url=url))
                four = stack.enter_context(peer(few, url=url))
                measures = {
                    "bare": peft.seconds,
                    "service": single.seconds,
                    "together": partial(four.seconds, "together"),
                    "in turn": partial(four.seconds, "in turn"),
                }
                for measure in measures.values():
                    measure()  # warms up
                found = interleaved(measures, rounds=asked.rounds)
            what = f"{asked.sequences} sequences of {length} tokens"
            ratio = paired_ratio(found["bare"], found["service"])
            print(
                row(
                    f"forward_backward through the service / bare PEFT, {what}", ratio, at_least=0.9
                )
            )
            ratio = paired_ratio(found["in turn"], found["together"])
            wanted = 1.5 if length == 128 else None
            what = f"4 users of one sequence of {length} tokens"
            print(row(f"{what}, together / in turn", ratio, at_least=wanted))


if __name__ == "__main__":
    main(sys.argv[1:])
