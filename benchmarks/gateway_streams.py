"""What the gateway costs a real vLLM at 64 streams: python benchmarks/gateway_streams.py.

Serves SmolLM2 (the environment is built on first use) and takes turns: the same requests straight
to the engine, and through the gateway in front of it. Every answer is a stream of the same length
(ignore_eos). The engine's own speed drifts by more than the gateway costs, so turns are short, and
a round has four of them: through, straight, straight, through, or the other way round. A steady
drift is then the same for both. Rounds begin until the time is over, and every one counts. Tokens
per second; the ratio goes to standard output as a row for docs/performance.md.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence

import aiohttp
import orjson
import uvloop
from interleaved import HEAD, machine, paired_ratio, row, say
from proxies import our_gateway

from enginehouse.deployment.opening import serve

LEAST_ROUNDS = 2  # or there would be no interval


async def _measured(asked: argparse.Namespace) -> tuple[list[float], list[float]]:
    through: list[float] = []
    straight: list[float] = []
    async with serve(
        asked.model, notify=say, max_model_len=1024, max_num_seqs=asked.streams, dtype="float32"
    ) as ready:
        with our_gateway(ready.url, "--concurrency", str(asked.streams)) as gateway:
            for url in (ready.url, gateway.url):  # fills the prefix cache
                await _turn(url, ready.models[0], asked)
            before = gateway.cpu_seconds()
            end = time.monotonic() + asked.minutes * 60
            while time.monotonic() < end or len(through) < LEAST_ROUNDS:
                first, other = gateway.url, ready.url
                if len(through) % 2:
                    first, other = other, first
                seconds = {first: 0.0, other: 0.0}
                for url in (first, other, other, first):
                    seconds[url] += await _turn(url, ready.models[0], asked)
                tokens = 2 * asked.streams * asked.tokens
                through.append(tokens / seconds[gateway.url])
                straight.append(tokens / seconds[ready.url])
                say(
                    f"round {len(through)}: through {through[-1]:,.1f}, "
                    f"straight {straight[-1]:,.1f} tokens/s"
                )
            spent = (gateway.cpu_seconds() - before) / (len(through) * tokens)
            say(f"gateway: {spent * 1e6:,.0f} µs of CPU per streamed token")
    return through, straight


async def _turn(url: str, model: str, asked: argparse.Namespace) -> float:
    """The seconds that all streams take, each of which must be whole."""
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as client:
        started = time.perf_counter()
        bodies = (
            {
                "model": model,
                "messages": [{"role": "user", "content": f"Count from {number}."}],
                "max_tokens": asked.tokens,
                "ignore_eos": True,
                "temperature": 0,
                "stream": True,
            }
            for number in range(asked.streams)
        )
        await asyncio.gather(*(_stream(client, url, orjson.dumps(body)) for body in bodies))
        return time.perf_counter() - started


async def _stream(client: aiohttp.ClientSession, url: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    async with client.post(f"{url}/v1/chat/completions", data=body, headers=headers) as reply:
        last = b""
        async for chunk in reply.content.iter_any():
            last = (last + chunk)[-64:]
    if reply.status != 200 or b"[DONE]" not in last:
        sys.exit(f"a stream from {url} was not whole: {reply.status} {last!r}")


def main(arguments: Sequence[str]) -> None:
    """Measure and print the row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--minutes", type=float, default=7.5, help="after the engine's start")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    asked = parser.parse_args(arguments)
    say(machine())
    through, straight = uvloop.run(_measured(asked))
    print(HEAD)
    figure = f"gateway / vLLM alone, tokens/s at {asked.streams} streams"
    print(row(figure, paired_ratio(through, straight), at_least=0.95))


if __name__ == "__main__":
    main(sys.argv[1:])
