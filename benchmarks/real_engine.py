"""An evaluation against a real vLLM, and a bare loop with the same requests.

python benchmarks/real_engine.py serves SmolLM2 (the environment is built on first use) and takes
turns on that one server: our evaluation, with journal, scoring and report, and bare aiohttp posting
the same bodies. Every answer has the same length (ignore_eos), so that both make the engine do
the same work.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import cast

import aiohttp
import msgspec
import orjson
import uvloop
from interleaved import HEAD, machine, paired_ratio, row, say
from sums import write_task

from enginehouse import SampleRequest, SampleResponse, evaluation, serve
from enginehouse.core.sampler import Capabilities, Provenance, Sampler
from enginehouse.dialects import openai_chat
from enginehouse.evaluation import EvaluationSpec, TaskSpec
from enginehouse.store.layout import Layout
from enginehouse.store.runs import create_run
from enginehouse.tasks.registry import load_task


@dataclass
class FixedLength:
    """A sampler whose answers all have the same length; `bodies` collects what it sends."""

    sampler: Sampler
    model: str
    bodies: list[bytes] | None = None

    @property
    def capabilities(self) -> Capabilities:
        """Those of the sampler."""
        return self.sampler.capabilities

    async def sample(self, request: SampleRequest) -> SampleResponse:
        """Ask for max_tokens tokens, whatever the model has to say."""
        parameters = msgspec.structs.replace(request.parameters, ignore_eos=True)
        request = msgspec.structs.replace(request, parameters=parameters)
        if self.bodies is not None:
            body = openai_chat.encode(
                request, model=self.model, capabilities=self.capabilities, stream=False
            )
            self.bodies.append(body)
        return await self.sampler.sample(request)


@dataclass(frozen=True)
class Turn:
    """Samples per second, and CPU seconds of this program per sample."""

    rate: float
    cpu: float


async def _measured(asked: argparse.Namespace) -> tuple[list[Turn], list[Turn]]:
    ours: list[Turn] = []
    bare: list[Turn] = []
    async with serve(asked.model, notify=say, concurrency=asked.concurrency) as ready:
        bodies: list[bytes] = []
        first = FixedLength(ready.sampler, ready.models[0], bodies)
        await _evaluation(asked, first, ready.provenance)  # fills the engine's prefix cache
        sampler = FixedLength(ready.sampler, ready.models[0])
        for number in range(asked.rounds):
            for turn in ("ours", "bare") if number % 2 else ("bare", "ours"):
                if turn == "ours":
                    ours.append(await _evaluation(asked, sampler, ready.provenance))
                else:
                    bare.append(await _bare(ready.url, bodies, asked.concurrency))
            rates = f"ours {ours[-1].rate:.3f}, bare {bare[-1].rate:.3f} samples/s"
            say(f"round {number + 1} of {asked.rounds}: {rates}")
    return ours, bare


async def _evaluation(
    asked: argparse.Namespace, sampler: FixedLength, provenance: Provenance
) -> Turn:
    with tempfile.TemporaryDirectory() as folder:
        task = load_task(str(write_task(Path(folder), items=asked.samples)))
        data = task.load(data=None, seed=0)
        layout = Layout(cache=Path(folder), state=Path(folder), config=Path(folder))
        run = create_run(layout, model="benchmark", tasks=["sums"], config="", versions={})
        spec = EvaluationSpec(
            tasks=(TaskSpec(name="sums", max_tokens=asked.tokens),), concurrency=asked.concurrency
        )
        began, cpu = time.perf_counter(), time.process_time()
        report = await evaluation.evaluate(
            spec,
            tasks=evaluation.plan_tasks(spec, {"sums": (task, data)}),
            sampler=cast("Sampler", sampler),  # this task neither streams nor tokenizes
            provenance=provenance,
            run=run,
        )
        turn = _turn(asked.samples, began, cpu)
    if report.tasks[0].outcomes["truncated"] != asked.samples:
        sys.exit(f"answers of another length: {report.tasks[0].outcomes}")
    return turn


async def _bare(url: str, bodies: Sequence[bytes], concurrency: int) -> Turn:
    began, cpu = time.perf_counter(), time.process_time()
    headers = {"Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def work(left: Iterator[bytes]) -> None:
            for body in left:
                async with session.post(f"{url}/v1/chat/completions", data=body) as reply:
                    _ = orjson.loads(await reply.read())["choices"][0]["message"]["content"]

        left = iter(bodies)
        await asyncio.gather(*(work(left) for _ in range(concurrency)))
    return _turn(len(bodies), began, cpu)


def _turn(samples: int, began: float, cpu: float) -> Turn:
    seconds, used = time.perf_counter() - began, time.process_time() - cpu
    return Turn(rate=samples / seconds, cpu=used / samples)


def main(arguments: Sequence[str]) -> None:
    """Measure and print the row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=16, help="of every answer")
    asked = parser.parse_args(arguments)
    say(machine())
    ours, bare = uvloop.run(_measured(asked))
    for name, turns in (("ours", ours), ("bare loop", bare)):
        say(f"{name}: {median(t.cpu for t in turns) * 1e6:,.0f} µs of CPU per sample (median)")
    ratio = paired_ratio([t.rate for t in ours], [t.rate for t in bare])
    print(HEAD)
    figure = f"evaluation / bare loop on a real vLLM, {asked.concurrency} at once"
    print(row(figure, ratio, at_least=0.95))


if __name__ == "__main__":
    main(sys.argv[1:])
