"""A newly saved adapter on a real vLLM: how soon it answers, and what others notice of it.

python benchmarks/tinker_sampling.py opens the sampling engine of the Tinker service on SmolLM2. In
turns, each with an adapter that it never saw: our `sample` of one token (check, digest, load, proof
and answer), and the bare endpoint and the same token. Once with nothing else to do, once beside
streams of other users, whose longest pauses between two tokens are compared as well.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import uvloop
from interleaved import HEAD, machine, mean, paired_ratio, row, say
from random_loras import RANK, write_lora

from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout
from enginehouse.tinker.configuration import TinkerConfig
from enginehouse.tinker.sampling.base import TokenPrompt, Weights
from enginehouse.tinker.sampling.deployed import DeployedSampling
from enginehouse.tinker.sampling.opening import open_sampling

_BASE = Weights(key="base")
_TOKENS = list(range(100, 132))
_STORY = {"prompt": "Once upon a time", "max_tokens": 1500, "ignore_eos": True, "stream": True}


class _Streams:
    """Streams of the base model, one after another; `pauses` are between their pieces."""

    def __init__(self, engine: DeployedSampling) -> None:
        self._engine = engine
        self.pauses: list[float] = []

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            stream = await self._engine.stream(_BASE, "/v1/completions", _STORY)
            before: float | None = None
            async for _ in stream:
                now = time.perf_counter()
                if before is not None:
                    self.pauses.append(now - before)
                before = now

    def longest(self) -> float:
        """The longest pause since this was last asked."""
        pauses, self.pauses = self.pauses, []
        return max(pauses, default=0.0)


@asynccontextmanager
async def _streaming(engine: DeployedSampling, count: int) -> AsyncIterator[_Streams]:
    streams = _Streams(engine)
    tasks = [asyncio.create_task(streams.run()) for _ in range(count)]
    try:
        while len(streams.pauses) < 4 * count:  # noqa: ASYNC110 - they do not tell
            await asyncio.sleep(0.05)
        streams.longest()
        yield streams
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _ours(engine: DeployedSampling, folder: Path) -> float:
    weights = Weights(key=folder.name, folder=folder)
    prompt = TokenPrompt(tokens=np.array(_TOKENS, np.int32), max_tokens=1)
    began = time.perf_counter()
    await engine.sample(weights, prompt)
    taken = time.perf_counter() - began
    await engine.forget(weights)
    return taken


async def _bare(session: aiohttp.ClientSession, folder: Path) -> float:
    load = {"lora_name": folder.name, "lora_path": str(folder)}
    ask = {"model": folder.name, "prompt": _TOKENS, "max_tokens": 1, "logprobs": 0}
    began = time.perf_counter()
    await _post(session, "/v1/load_lora_adapter", load)
    await _post(session, "/v1/completions", ask)
    taken = time.perf_counter() - began
    await _post(session, "/v1/unload_lora_adapter", {"lora_name": folder.name})
    return taken


async def _post(session: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> None:
    async with session.post(path, json=body) as reply:
        text = await reply.text()
        if reply.status != 200:
            sys.exit(text)


async def _compared(
    engine: DeployedSampling, fresh: Iterator[Path], *, streams: int, rounds: int
) -> None:
    times: dict[str, list[float]] = {"ours": [], "bare": []}
    pauses: dict[str, list[float]] = {"ours": [], "bare": [], "none": []}
    server = engine.deployment.server
    key = {"Authorization": f"Bearer {server.admin_key}"}
    async with (
        aiohttp.ClientSession(server.base_url, headers=key) as session,
        _streaming(engine, streams) as others,
    ):
        for number in range(rounds + 1):
            for turn in ("ours", "bare") if number % 2 else ("bare", "ours"):
                others.longest()
                folder = next(fresh)
                taken = await (_ours(engine, folder) if turn == "ours" else _bare(session, folder))
                if number:  # the first of each warms up
                    times[turn].append(taken)
                    pauses[turn].append(others.longest())
            others.longest()
            await asyncio.sleep(float(np.mean(times["ours"] or [0.3])))
            pauses["none"].append(others.longest())
            say(f"round {number}: {times['ours'][-1:]} and {times['bare'][-1:]} s")
    beside = f"beside {streams} streams" if streams else "alone"
    figure = f"save to first token / bare load and first token, {beside}"
    print(row(figure, paired_ratio(times["ours"], times["bare"]), at_most=1.2))
    print(row(f"save to first token, {beside}, s", mean(times["ours"])))
    if streams:
        longest = paired_ratio(pauses["ours"], pauses["bare"])
        print(row("longest pause of others meanwhile / that of a bare load", longest))
        for turn, name in (("ours", "our load"), ("bare", "a bare load"), ("none", "nothing")):
            print(row(f"longest pause of others during {name}, s", mean(pauses[turn])))


async def _measured(asked: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        layout = replace(Layout.from_environment(), state=Path(scratch) / "state")
        config = TinkerConfig(
            base_model=asked.model,
            sampler="vllm",
            train_unembed=False,
            max_loras=4,
            max_lora_rank=RANK,
            max_model_len=2048,
        )
        async with open_sampling(config, Context(layout=layout, notify=say)) as opened:
            engine: DeployedSampling = opened.main  # type: ignore[attr-defined]
            assert engine.deployment.model is not None
            checkpoint = Path(engine.deployment.model.path)
            folders = [
                await asyncio.to_thread(
                    write_lora, Path(scratch) / f"lora-{seed}", checkpoint, seed=seed
                )
                for seed in range(4 * (asked.rounds + 1))
            ]
            fresh = iter(folders)
            print(HEAD)
            for streams in (0, asked.streams):
                await _compared(engine, fresh, streams=streams, rounds=asked.rounds)


def main(arguments: Sequence[str]) -> None:
    """Measure and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--streams", type=int, default=4)
    asked = parser.parse_args(arguments)
    say(machine())
    uvloop.run(_measured(asked))


if __name__ == "__main__":
    main(sys.argv[1:])
