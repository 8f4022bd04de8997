"""From saving weights for sampling to their first token, and what others notice of it.

python benchmarks/tinker_sampling.py starts the Tinker service on SmolLM2 with vLLM. In turns: a
user's save and one token of what was saved, through the real SDK (the trainer writes it, the
service records, checks, loads and proves it); and vLLM's own load of a copy of that adapter and one
token, at its bare endpoints. Once with nothing else to do, once beside streams of another user,
whose longest pauses between two tokens are compared as well.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from interleaved import HEAD, machine, mean, paired_ratio, row, say
from peer_environments import peer_command
from tinker_served import KEY, Peer, checkpoint_of, peer, served, trainer_environment

from enginehouse.commands.tinker import ask_status
from enginehouse.store.layout import Layout

_TOKENS = list(range(100, 132))
_STORY = {"prompt": "Once upon a time", "max_tokens": 900, "ignore_eos": True, "stream": True}
# GiB, as its own default writes the whole memory before it is ready
_VLLM = {"VLLM_CPU_KVCACHE_SPACE": "1"}


@dataclass
class _Streams:
    """Streams of the base model, one after another; `pauses` are between their pieces."""

    url: str
    model: str
    pauses: list[float] = field(default_factory=list)

    async def run(self) -> None:
        """Until cancelled."""
        headers = {"Authorization": f"Bearer {KEY}"}
        body = _STORY | {"model": self.model}
        async with aiohttp.ClientSession(self.url, headers=headers) as session:
            while True:
                async with session.post("/v1/completions", json=body) as reply:
                    if reply.status != 200:
                        sys.exit(await reply.text())
                    before: float | None = None
                    async for _ in reply.content.iter_any():
                        now = time.perf_counter()
                        if before is not None:
                            self.pauses.append(now - before)
                        before = now

    def longest(self) -> float:
        """The longest pause since this was last asked."""
        pauses, self.pauses = self.pauses, []
        return max(pauses, default=0.0)


@asynccontextmanager
async def _streaming(url: str, model: str, count: int) -> AsyncIterator[_Streams]:
    streams = _Streams(url, model)
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


class _Bare:
    """vLLM's own endpoints, with copies of the adapters that the service has saved."""

    def __init__(self, session: aiohttp.ClientSession, *, home: Path, scratch: Path) -> None:
        self._session = session
        self._checkpoints = home / "checkpoints"
        self._copies = (scratch / f"copy-{number}" for number in itertools.count())

    async def seconds(self) -> float:
        """From the load of the newest one to its first token."""
        saved = self._checkpoints.rglob("adapter_model.safetensors")
        newest = max(saved, key=lambda file: file.stat().st_mtime_ns).parent
        folder = next(self._copies)
        await asyncio.to_thread(shutil.copytree, newest, folder)
        load = {"lora_name": folder.name, "lora_path": str(folder)}
        ask = {"model": folder.name, "prompt": _TOKENS, "max_tokens": 1, "logprobs": 0}
        began = time.perf_counter()
        await self._post("/v1/load_lora_adapter", load)
        await self._post("/v1/completions", ask)
        taken = time.perf_counter() - began
        await self._post("/v1/unload_lora_adapter", {"lora_name": folder.name})
        return taken

    async def _post(self, path: str, body: dict[str, Any]) -> None:
        async with self._session.post(path, json=body) as reply:
            text = await reply.text()
            if reply.status != 200:
                sys.exit(text)


async def _vllm(home: Path) -> tuple[str, str]:
    """The address and the administrative key of the service's vLLM."""
    address = (await ask_status(home, url=None)).sampling["url"]
    for record in (Layout.from_environment().state / "servers").glob("*/server.json"):
        if json.loads(record.read_text())["base_url"] == address:
            return address, record.with_name("admin.key").read_text()
    sys.exit(f"no server of {address} is recorded")


async def _compared(ours: Peer, bare: _Bare, streams: _Streams, *, count: int, rounds: int) -> None:
    times: dict[str, list[float]] = {"ours": [], "bare": []}
    pauses: dict[str, list[float]] = {"ours": [], "bare": [], "none": []}
    for number in range(rounds + 1):
        for turn in ("ours", "bare") if number % 2 == 0 else ("bare", "ours"):
            streams.longest()
            if turn == "ours":
                taken = await asyncio.to_thread(ours.seconds)
            else:
                taken = await bare.seconds()
            if number:  # the first of each warms up
                times[turn].append(taken)
                pauses[turn].append(streams.longest())
        streams.longest()
        await asyncio.sleep(float(np.mean(times["ours"] or [0.3])))
        pauses["none"].append(streams.longest())
        say(f"round {number}: {times['ours'][-1:]} and {times['bare'][-1:]} s")
    beside = f"beside {count} streams" if count else "alone"
    figure = f"save for sampling to first token / vLLM's own load and first token, {beside}"
    print(row(figure, paired_ratio(times["ours"], times["bare"]), at_most=1.2))
    print(row(f"save for sampling to first token, {beside}, s", mean(times["ours"])))
    if count:
        longest = paired_ratio(pauses["ours"], pauses["bare"])
        print(row("longest pause of others meanwhile / that of a bare load", longest))
        for turn, name in (("ours", "our save"), ("bare", "a bare load"), ("none", "nothing")):
            print(row(f"longest pause of others during {name}, s", mean(pauses[turn])))


async def _measured(asked: argparse.Namespace, model: Path, url: str, scratch: Path) -> None:
    home = scratch / "home"
    address, key = await _vllm(home)
    command = peer_command("tinker", "tinker_saves.py")
    authorized = {"Authorization": f"Bearer {key}"}
    with peer([*command, model, asked.rank, len(_TOKENS)], url=url) as ours:
        async with aiohttp.ClientSession(address, headers=authorized) as session:
            bare = _Bare(session, home=home, scratch=scratch)
            for count in (0, asked.streams):
                async with _streaming(url, str(model), count) as streams:
                    await _compared(ours, bare, streams, count=count, rounds=asked.rounds)


def main(arguments: Sequence[str]) -> None:
    """Measure and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--streams", type=int, default=4)
    asked = parser.parse_args(arguments)
    say(machine())
    model = checkpoint_of(asked.model, trainer_environment())
    print(HEAD)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / "home").mkdir()
        words = ("--sampler", "vllm", "--max-loras", "4", "--max-lora-rank", str(asked.rank))
        words += ("--max-model-len", "1024")
        with served(model, *words, home=scratch / "home", env=_VLLM) as url:
            asyncio.run(_measured(asked, model, url, scratch))


if __name__ == "__main__":
    main(sys.argv[1:])
