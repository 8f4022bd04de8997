"""Votes constrained to a choice, and unconstrained answers of the same length, on a real vLLM.

python benchmarks/structured.py serves SmolLM2 and asks the same prompts in turns: with
structured output (choice BLACK or RED, end of sequence included), and without, each answer as long
as its vote was (max_tokens and ignore_eos).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence

import uvloop
from interleaved import HEAD, machine, paired_ratio, row, say

from enginehouse import (
    ChatPrompt,
    Message,
    SampleRequest,
    SamplingParameters,
    StructuredOutput,
    serve,
)
from enginehouse.core.sampler import Sampler, SampleResponse

_RULES = (
    "You play the Red-Black game. Both teams BLACK: +3 each. Both RED: -3 each. "
    "RED against BLACK: +6 and -6. Vote with one word, BLACK or RED."
)
_VOTE = StructuredOutput(choice=("BLACK", "RED"))


def _request(number: int, **parameters: object) -> SampleRequest:
    prompt = (Message("system", _RULES), Message("user", f"You are agent {number}. Your vote?"))
    return SampleRequest(
        prompt=ChatPrompt(prompt),
        parameters=SamplingParameters(temperature=1.0, seed=number, **parameters),  # type: ignore[arg-type]
    )


async def _rate(sampler: Sampler, requests: Sequence[SampleRequest]) -> tuple[float, list[int]]:
    """Generated tokens per second, and the length of each answer in tokens."""
    began = time.perf_counter()
    replies: list[SampleResponse] = await asyncio.gather(*map(sampler.sample, requests))
    lengths = [reply.completion_tokens for reply in replies]
    return sum(lengths) / (time.perf_counter() - began), lengths


async def _measured(asked: argparse.Namespace) -> tuple[list[float], list[float]]:
    constrained: list[float] = []
    plain: list[float] = []
    votes = [_request(n, structured=_VOTE, max_tokens=8) for n in range(asked.requests)]
    async with serve(asked.model, notify=say, concurrency=asked.concurrency) as ready:
        _, lengths = await _rate(ready.sampler, votes)
        same = [_request(n, max_tokens=length, ignore_eos=True) for n, length in enumerate(lengths)]
        await _rate(ready.sampler, same)
        for number in range(asked.rounds):
            for turn in ("votes", "plain") if number % 2 else ("plain", "votes"):
                requests, rates = (votes, constrained) if turn == "votes" else (same, plain)
                rate, found = await _rate(ready.sampler, requests)
                if found != lengths:
                    sys.exit("answers of another length: the comparison would mean nothing")
                rates.append(rate)
            say(f"round {number + 1}: {constrained[-1]:.1f} and {plain[-1]:.1f} tokens/s")
    return constrained, plain


def main(arguments: Sequence[str]) -> None:
    """Measure and print the row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--requests", type=int, default=128)
    asked = parser.parse_args(arguments)
    say(machine())
    constrained, plain = uvloop.run(_measured(asked))
    print(HEAD)
    figure = f"choice-constrained / unconstrained tokens/s, {asked.concurrency} at once"
    print(row(figure, paired_ratio(constrained, plain), at_least=0.9))


if __name__ == "__main__":
    main(sys.argv[1:])
