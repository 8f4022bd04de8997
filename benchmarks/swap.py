"""A swap of full weights, and the bare calls that reload them, on a real vLLM.

python benchmarks/swap.py serves SmolLM2 and changes in turns between two checkpoints (SmolLM2, and
a copy of it): by WeightSwapper.swap, and by POST /collective_rpc (reload_weights) and POST
/reset_prefix_cache alone. Checking the checkpoint, hashing it and the canary are told apart: the
ratio is that of bringing the server to rest, reloading, resetting and letting it go on.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import aiohttp
import uvloop
from interleaved import HEAD, machine, mean, paired_ratio, row, say

from enginehouse import serve
from enginehouse.store.layout import Layout
from enginehouse.weights.checkpoint import digest_of
from enginehouse.weights.swap import Swapped, WeightSwapper


async def _bare(session: aiohttp.ClientSession, folder: Path) -> float:
    """Seconds that the calls take without us."""
    began = time.perf_counter()
    call = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
    async with session.post("/collective_rpc", json=call) as reply:
        if reply.status != 200:
            sys.exit(await reply.text())
    async with session.post("/reset_prefix_cache") as reply:
        if await reply.json() != {"success": True}:
            sys.exit("the prefix cache was not reset")
    return time.perf_counter() - began


async def _rounds(
    swapper: WeightSwapper, session: aiohttp.ClientSession, folders: tuple[Path, Path], count: int
) -> tuple[list[Swapped], list[float]]:
    swaps: list[Swapped] = []
    bare: list[float] = []
    for number in range(-2, count):  # two are a warm-up: each folder's values are looked at once
        for turn in ("swap", "bare") if number % 2 else ("bare", "swap"):
            folder = folders[(len(swaps) + len(bare)) % 2]
            if turn == "swap":
                swaps.append(await swapper.swap(folder))
            else:
                bare.append(await _bare(session, folder))
        say(f"round {number + 1}: {_seconds(swaps[-1]):.3f} s and {bare[-1]:.3f} s")
    return swaps[2:], bare[2:]


def _hashed(folder: Path, *, cache: Path) -> str:
    """How long a checkpoint's digest takes where nothing is remembered, in words."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6
    began = time.perf_counter()
    digest_of(folder, layout=replace(Layout.from_environment(), cache=cache))
    return f"digest of {size:.0f} MB, once: {time.perf_counter() - began:.2f} s"


def _seconds(swap: Swapped) -> float:
    return swap.draining + swap.replacing


async def _measured(asked: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        async with serve(asked.model, notify=say, enable_weight_swap=True) as ready:
            if ready.weights is None or ready.model is None:
                sys.exit("this server's weights cannot be swapped")
            one, two = Path(ready.model.path), Path(scratch) / "two"
            shutil.copytree(one, two)
            say(_hashed(two, cache=Path(scratch) / "cache"))
            key = {"Authorization": f"Bearer {ready.server.admin_key}"}
            async with aiohttp.ClientSession(
                ready.url, headers=key, timeout=aiohttp.ClientTimeout(total=None)
            ) as session:
                swaps, bare = await _rounds(ready.weights, session, (one, two), asked.rounds)
    print(HEAD)
    ratio = paired_ratio([_seconds(swap) for swap in swaps], bare)
    print(row("swap of full weights / bare reload and reset", ratio, at_most=1.2))
    print(row("bare reload and reset, s", mean(bare)))
    print(row("swap: draining, reload, reset, release, s", mean([_seconds(s) for s in swaps])))
    print(row("swap: checking, digest remembered, s", mean([s.checking for s in swaps])))
    print(row("swap: canary (4 tokens), s", mean([s.canary for s in swaps])))


def main(arguments: Sequence[str]) -> None:
    """Measure and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=24)
    asked = parser.parse_args(arguments)
    say(machine())
    uvloop.run(_measured(asked))


if __name__ == "__main__":
    main(sys.argv[1:])
