"""Our client in the same loop as bare_client.py: our_client.py URL REQUESTS CONCURRENCY."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator

import uvloop

from enginehouse import ChatPrompt, Message, SampleRequest, SamplingParameters
from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.sampler import Capabilities, Capability


async def main(url: str, requests: int, concurrency: int) -> None:
    """Print requests/s and CPU seconds per request; the first round only opens connections."""
    request = SampleRequest(
        prompt=ChatPrompt((Message("user", "1 + 1 = ?"),)),
        parameters=SamplingParameters(max_tokens=64),
    )
    everything = Capabilities(supports=frozenset(Capability))
    async with HTTPSampler(url, capabilities=everything, concurrency=concurrency) as sampler:

        async def work(left: Iterator[int]) -> None:
            for _ in left:
                _ = (await sampler.sample(request)).completions[0].text

        for count in (concurrency, requests):
            left, began, cpu = iter(range(count)), time.perf_counter(), time.process_time()
            await asyncio.gather(*(work(left) for _ in range(concurrency)))
        print(requests / (time.perf_counter() - began), (time.process_time() - cpu) / requests)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
