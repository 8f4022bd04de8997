"""Tokens per second of every engine that runs here, at several loads, in one run.

python benchmarks/engines.py serves SmolLM2 with each engine in turn and asks the same questions,
each for exactly --tokens tokens (ignore_eos), with 1, 8, 32 and 64 requests at once. The engines
take turns over the rounds, so that drift of the machine meets all of them; the table has medians.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from statistics import median

import uvloop
from interleaved import machine, say

from enginehouse import ChatPrompt, Message, SampleRequest, SamplingParameters, serve
from enginehouse.core.sampler import Sampler

LOADS = (1, 8, 32, 64)
_FEWEST = 8


def _requests(count: int, tokens: int) -> list[SampleRequest]:
    parameters = SamplingParameters(max_tokens=tokens, ignore_eos=True)
    return [
        SampleRequest(
            prompt=ChatPrompt((Message("user", f"Tell a story about {n} sailors and a whale."),)),
            parameters=parameters,
        )
        for n in range(count)
    ]


async def _rate(sampler: Sampler, *, load: int, tokens: int) -> float:
    """Generated tokens per second with `load` requests under way."""
    gate = asyncio.Semaphore(load)

    async def ask(request: SampleRequest) -> int:
        async with gate:
            return (await sampler.sample(request)).completion_tokens

    requests = _requests(max(_FEWEST, 2 * load), tokens)
    began = time.perf_counter()
    made = await asyncio.gather(*map(ask, requests))
    if set(made) != {tokens}:
        sys.exit(f"answers of other lengths than {tokens}: {sorted(set(made))}")
    return sum(made) / (time.perf_counter() - began)


async def _measured(asked: argparse.Namespace) -> dict[tuple[str, int], list[float]]:
    rates: dict[tuple[str, int], list[float]] = defaultdict(list)
    for number in range(asked.rounds):
        for engine in asked.engines if number % 2 else reversed(asked.engines):
            options = {"max_num_seqs": max(LOADS), "max_model_len": asked.context}
            async with serve(
                asked.model, engine=engine, notify=say, concurrency=max(LOADS), **options
            ) as ready:
                await _rate(ready.sampler, load=8, tokens=asked.tokens)
                for load in LOADS:
                    rate = await _rate(ready.sampler, load=load, tokens=asked.tokens)
                    rates[engine, load].append(rate)
                    say(f"round {number + 1}: {engine} at {load}: {rate:.1f} tokens/s")
    return rates


def main(arguments: Sequence[str]) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--engines", nargs="+", default=["vllm", "hf", "llamacpp"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64, help="of every answer")
    parser.add_argument("--context", type=int, default=512, help="tokens of prompt and answer")
    asked = parser.parse_args(arguments)
    print(machine())
    rates = uvloop.run(_measured(asked))
    print("| engine | " + " | ".join(f"{load} at once" for load in LOADS) + " |")
    print("|---|" + "---|" * len(LOADS))
    for engine in asked.engines:
        cells = (
            f"{median(rates[engine, load]):.0f} "
            f"({min(rates[engine, load]):.0f} to {max(rates[engine, load]):.0f})"
            for load in LOADS
        )
        print(f"| {engine} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
