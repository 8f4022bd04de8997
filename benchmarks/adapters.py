"""Adapters on a real vLLM: what our loading adds, and what mixing them costs.

python benchmarks/adapters.py serves SmolLM2 with LoRA. While eight requests of the base model are
under way it takes turns: AdapterPool.load without proof and the first token of an answer, and the
bare endpoint and the first token. Every adapter is new. Digest, check and copy count as our time,
and printed apart, too, as is the proof. Then the same number of requests is asked of the base only,
and of 1, 2 and 4 adapters mixed.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import uvloop
from interleaved import HEAD, machine, mean, paired_ratio, row, say
from random_loras import RANK, write_lora

from enginehouse import ChatPrompt, Message, SampleRequest, SamplingParameters, serve
from enginehouse.client.sampler import HTTPSampler
from enginehouse.deployment.base import Deployment
from enginehouse.store.layout import Layout
from enginehouse.weights.peft_folder import read_peft_folder
from enginehouse.weights.pool import AdapterPool
from enginehouse.weights.proof import prove_effect
from enginehouse.weights.store import AdapterStore

_BUSY = 8
_MIXES = (0, 1, 2, 4)


def _request(number: int, *, model: str | None, tokens: int) -> SampleRequest:
    return SampleRequest(
        prompt=ChatPrompt((Message("user", f"Tell a story about {number + 2} owls."),)),
        parameters=SamplingParameters(max_tokens=tokens, ignore_eos=True),
        model=model,
    )


async def _first_token(sampler: HTTPSampler, model: str) -> None:
    async with aclosing(sampler.stream(_request(0, model=model, tokens=4))) as deltas:  # type: ignore[type-var]
        async for delta in deltas:
            if delta.text:
                return


@asynccontextmanager
async def _busy(sampler: HTTPSampler) -> AsyncIterator[None]:
    """Requests of the base model, one after another, for the length of the block."""

    async def ask(number: int) -> None:
        for turn in itertools.count():
            await sampler.sample(_request(number + _BUSY * turn, model=None, tokens=64))

    tasks = [asyncio.create_task(ask(number)) for number in range(_BUSY)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _loads(ready: Deployment, folders: Sequence[Path], layout: Layout) -> None:
    """Ours and the bare endpoint in turns, each with an adapter that the server never saw."""
    ours: list[float] = []
    bare: list[float] = []
    parts: dict[str, list[float]] = {"digest": [], "check": [], "copy": []}
    sampler = ready.sampler
    pool = AdapterPool(sampler, max_loras=4, store=AdapterStore(layout), max_rank=RANK)
    fresh = iter(folders)
    key = {"Authorization": f"Bearer {ready.server.admin_key}"}
    async with aiohttp.ClientSession(ready.url, headers=key) as session, _busy(sampler):
        for number in range(len(folders) // 2):
            for turn in ("ours", "bare") if number % 2 else ("bare", "ours"):
                folder = next(fresh)
                began = time.perf_counter()
                if turn == "ours":
                    model = (await pool.load(folder.name, folder)).model
                    await _first_token(sampler, model)
                    ours.append(time.perf_counter() - began)
                    await pool.unload(folder.name)
                    await asyncio.to_thread(_take_apart, folder, parts)
                else:
                    name, call = folder.name, {"lora_name": folder.name, "lora_path": str(folder)}
                    async with session.post("/v1/load_lora_adapter", json=call) as reply:
                        if reply.status != 200:
                            sys.exit(await reply.text())
                    await _first_token(sampler, name)
                    bare.append(time.perf_counter() - began)
                    await sampler.unload_adapter(name)
            say(f"round {number + 1}: {ours[-1]:.3f} s and {bare[-1]:.3f} s")
    # the first of each warms up
    figure = "adapter load to first token / bare endpoint to first token, under load"
    print(row(figure, paired_ratio(ours[1:], bare[1:]), at_most=1.2))
    print(row("adapter load to first token, s", mean(ours[1:])))
    for part, taken in parts.items():
        print(row(f"of it: {part}, s", mean(taken[1:])))


def _take_apart(folder: Path, parts: dict[str, list[float]]) -> None:
    """What adding an adapter consists of, each by itself."""
    began = time.perf_counter()
    for file in sorted(folder.iterdir()):
        with file.open("rb") as opened:
            hashlib.file_digest(opened, "sha256")
    hashed = time.perf_counter()
    read_peft_folder(folder, max_rank=RANK)
    checked = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        shutil.copytree(folder, Path(scratch) / "copy")
        copied = time.perf_counter()
    parts["digest"].append(hashed - began)
    parts["check"].append(checked - hashed)
    parts["copy"].append(copied - checked)


async def _proofs(ready: Deployment, folders: Sequence[Path]) -> None:
    taken = []
    for folder in folders:
        model = await ready.sampler.load_adapter(folder.name, path=str(folder))
        began = time.perf_counter()
        await prove_effect(ready.sampler, model=model, base_model=ready.sampler.model)
        taken.append(time.perf_counter() - began)
        await ready.sampler.unload_adapter(folder.name)
    print(row("proof of effect, s", mean(taken)))


async def _mixed(ready: Deployment, folders: Sequence[Path], *, rounds: int) -> None:
    rates: dict[int, list[float]] = {count: [] for count in _MIXES}
    models = [await ready.sampler.load_adapter(f.name, path=str(f)) for f in folders]
    for number in range(-1, rounds):
        for count in _MIXES if number % 2 else reversed(_MIXES):
            named = itertools.cycle(models[:count] or [ready.sampler.model])
            requests = [_request(n, model=next(named), tokens=64) for n in range(64)]
            began = time.perf_counter()
            await asyncio.gather(*map(ready.sampler.sample, requests))
            if number >= 0:
                rates[count].append(64 * 64 / (time.perf_counter() - began))
                say(f"round {number + 1}: {count} adapters, {rates[count][-1]:.0f} tokens/s")
    for count in _MIXES[1:]:
        figure = f"tokens/s with {count} adapters mixed / base only, 32 at once"
        print(row(figure, paired_ratio(rates[count], rates[0])))


async def _measured(asked: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        layout = replace(Layout.from_environment(), cache=Path(scratch) / "cache")
        options = {"enable_lora": True, "max_loras": 4, "max_lora_rank": RANK}
        async with serve(asked.model, notify=say, concurrency=32, **options) as ready:
            assert ready.model is not None
            checkpoint = Path(ready.model.path)
            folders = [
                await asyncio.to_thread(
                    write_lora, Path(scratch) / f"lora-{seed}", checkpoint, seed=seed
                )
                for seed in range(2 * (asked.rounds + 1) + 4)
            ]
            print(HEAD)
            await _loads(ready, folders[:-4], layout)
            await _proofs(ready, folders[-4:])
            await _mixed(ready, folders[-4:], rounds=asked.mixes)


def main(arguments: Sequence[str]) -> None:
    """Measure and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--mixes", type=int, default=4)
    asked = parser.parse_args(arguments)
    say(machine())
    uvloop.run(_measured(asked))


if __name__ == "__main__":
    main(sys.argv[1:])
