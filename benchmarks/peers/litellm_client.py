"""LiteLLM in the same loop as bare_client.py: litellm_client.py URL REQUESTS CONCURRENCY."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator

import litellm
import uvloop


async def main(url: str, requests: int, concurrency: int) -> None:
    """Print requests/s and CPU seconds per request; the first round only opens connections."""

    async def work(left: Iterator[int]) -> None:
        for _ in left:
            reply = await litellm.acompletion(
                model="openai/fixed",
                api_base=f"{url}/v1",
                api_key="none",
                messages=[{"role": "user", "content": "1 + 1 = ?"}],
                max_tokens=64,
            )
            _ = reply.choices[0].message.content

    for count in (concurrency, requests):
        left, began, cpu = iter(range(count)), time.perf_counter(), time.process_time()
        await asyncio.gather(*(work(left) for _ in range(concurrency)))
    print(requests / (time.perf_counter() - began), (time.process_time() - cpu) / requests)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
