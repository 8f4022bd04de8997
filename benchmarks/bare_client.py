"""The least that a Python client can do, our yardstick: bare_client.py URL REQUESTS CONCURRENCY."""

import asyncio
import sys
import time
from collections.abc import Iterator

import aiohttp
import orjson
import uvloop

BODY = {"model": "fixed", "messages": [{"role": "user", "content": "1 + 1 = ?"}], "max_tokens": 64}


async def main(url: str, requests: int, concurrency: int) -> None:
    """Print requests/s and CPU seconds per request; the first round only opens connections."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def work(left: Iterator[int]) -> None:
            for _ in left:
                async with session.post(url + "/v1/chat/completions", data=orjson.dumps(BODY)) as r:
                    orjson.loads(await r.read())["choices"][0]["message"]["content"]

        for count in (concurrency, requests):
            left, began, cpu = iter(range(count)), time.perf_counter(), time.process_time()
            await asyncio.gather(*(work(left) for _ in range(concurrency)))
        print(requests / (time.perf_counter() - began), (time.process_time() - cpu) / requests)


uvloop.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
