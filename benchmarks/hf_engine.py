"""The hf server at 32 concurrent requests, and `model.generate` on one batch of the same prompts.

python benchmarks/hf_engine.py serves SmolLM2 with --engine hf (its environment is built on first
use) and takes turns: the same conversations, one request each through our client, and one batch
through transformers' generate in a process of the same environment, with the same dtype. Every
answer has the same length. The figure is the ratio of generated tokens per second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvloop
from interleaved import FOLDER, HEAD, machine, paired_ratio, row, say

from enginehouse import ChatPrompt, Message, SampleRequest, SamplingParameters, serve
from enginehouse.core.sampler import Sampler

PLACES = ("harbour", "mountain", "library", "market", "desert", "castle", "forest", "station")


def _questions(count: int) -> list[str]:
    return [
        f"Tell a story about {at + 2} friends who meet in a {PLACES[at % len(PLACES)]}."
        for at in range(count)
    ]


class Generate:
    """The process that runs `model.generate`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def seconds(self) -> float:
        """How long one batch takes."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self.line())

    def line(self) -> str:
        """The next line that it prints; ends the benchmark if there is none."""
        assert self._process.stdout is not None
        return self._process.stdout.readline() or sys.exit("hf_generate.py ended")


@contextmanager
def _generate(python: str, *, model: str, asked: argparse.Namespace) -> Iterator[Generate]:
    program = FOLDER / "peers" / "hf_generate.py"
    command = [python, str(program), model, asked.dtype, str(asked.tokens)]
    env = os.environ | {"OMP_WAIT_POLICY": "passive"}  # as the server has it
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True
    ) as process:
        assert process.stdin is not None
        talks = [[{"role": "user", "content": text}] for text in _questions(asked.requests)]
        process.stdin.write(json.dumps(talks) + "\n")
        process.stdin.flush()
        peer = Generate(process)
        peer.line()
        try:
            yield peer
        finally:
            process.kill()


async def _ask(sampler: Sampler, *, asked: argparse.Namespace) -> float:
    """The seconds that all requests took, sent at once."""
    parameters = SamplingParameters(max_tokens=asked.tokens, ignore_eos=True)
    requests = [
        SampleRequest(prompt=ChatPrompt((Message("user", text),)), parameters=parameters)
        for text in _questions(asked.requests)
    ]
    began = time.perf_counter()
    answers = await asyncio.gather(*map(sampler.sample, requests))
    seconds = time.perf_counter() - began
    if {answer.completion_tokens for answer in answers} != {asked.tokens}:
        sys.exit("answers of another length")
    return seconds


async def _measured(asked: argparse.Namespace) -> tuple[list[float], list[float]]:
    ours: list[float] = []
    theirs: list[float] = []
    generated = asked.requests * asked.tokens
    async with serve(
        "smollm2", engine="hf", notify=say, concurrency=asked.requests, dtype=asked.dtype
    ) as ready:
        command = ready.server.command or ()
        model = command[command.index("--model") + 1]
        with _generate(command[0], model=model, asked=asked) as peer:
            for number in range(asked.rounds + 1):  # the first warms up
                for turn in ("ours", "theirs") if number % 2 else ("theirs", "ours"):
                    if turn == "ours":
                        ours.append(generated / await _ask(ready.sampler, asked=asked))
                    else:
                        theirs.append(generated / await asyncio.to_thread(peer.seconds))
                say(f"round {number}: ours {ours[-1]:.1f}, generate {theirs[-1]:.1f} tokens/s")
    return ours[1:], theirs[1:]


def main(arguments: Sequence[str]) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=Path(__file__).name)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--requests", type=int, default=32, help="at once, and in the batch")
    parser.add_argument("--tokens", type=int, default=64, help="of every answer")
    parser.add_argument("--dtype", default="bfloat16")
    asked = parser.parse_args(arguments)
    print(machine())
    ours, theirs = uvloop.run(_measured(asked))
    figure = f"hf at {asked.requests} concurrent / model.generate on one batch"
    print(HEAD)
    print(row(figure, paired_ratio(ours, theirs), at_least=0.85))


if __name__ == "__main__":
    main(sys.argv[1:])
