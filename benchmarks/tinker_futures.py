"""What waiting for the Tinker service costs: python benchmarks/tinker_futures.py.

A job that does nothing, one after another over HTTP on loopback: from sending it to having its
answer, with both written to the journal. And the share of a core that the service uses while many
clients each hold a poll for a future that is not answered, over whole rounds of polls.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import aiohttp
import numpy as np
import psutil
from interleaved import FOLDER, HEAD, machine, mean, row, say
from tinker_noop_service import NOOP

_LATENCY_BUDGET, _SHARE_BUDGET = 5.0, 0.05  # milliseconds, of a core
_POLL = "/api/v1/retrieve_future"
_HEADERS = {"x-api-key": "tml-bench", "accept": "application/x-protobuf"}
_BODY = b"x" * 2000


@dataclass(frozen=True)
class _Service:
    url: str
    process: psutil.Process


def main(arguments: Sequence[str]) -> None:
    """Measure and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1000, help="per round")
    parser.add_argument("--waiting", type=int, default=1000, help="clients that poll at once")
    parser.add_argument("--seconds", type=float, default=60, help="of polling per round")
    asked = parser.parse_args(arguments)
    say(machine())
    medians, tails, shares = [], [], []
    with _service() as service:
        asyncio.run(_latencies(service, jobs=asked.jobs, first="warm"))
        for number in range(asked.rounds):
            latencies = asyncio.run(_latencies(service, jobs=asked.jobs, first=str(number)))
            medians.append(float(np.median(latencies)))
            tails.append(float(np.quantile(latencies, 0.99)))
            say(f"round {number + 1}: median {medians[-1]:.2f} ms, p99 {tails[-1]:.2f} ms")
    with _service() as service:
        measured = _shares(
            service, waiting=asked.waiting, seconds=asked.seconds, rounds=asked.rounds
        )
        shares = asyncio.run(measured)
    print(HEAD)
    label = "a Tinker job that does nothing, sent to answered, milliseconds"
    print(row(f"{label}: median", mean(medians), at_most=_LATENCY_BUDGET))
    print(row(f"{label}: 99th percentile", mean(tails)))
    label = f"{asked.waiting:,} waiting Tinker futures, share of a core"
    print(row(label, mean(shares), at_most=_SHARE_BUDGET))


@contextmanager
def _service() -> Iterator[_Service]:
    """The service in a process of its own, with an empty journal."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(FOLDER / "tinker_noop_service.py"), folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                yield _Service(process.stdout.readline().strip(), psutil.Process(process.pid))
            finally:
                process.kill()


def _client(service: _Service) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        service.url, headers=_HEADERS, connector=aiohttp.TCPConnector(limit=0)
    )


async def _latencies(service: _Service, *, jobs: int, first: str) -> list[float]:
    """Milliseconds of each job, asked by one client with one connection."""
    latencies = []
    async with _client(service) as client:
        for number in range(jobs):
            began = time.perf_counter()
            request_id = await _send(client, NOOP, key=f"{first}-{number}")
            async with client.post(_POLL, json={"request_id": request_id}) as reply:
                assert await reply.read()
                assert reply.content_type == "application/x-protobuf"
            latencies.append(1000 * (time.perf_counter() - began))
    return latencies


async def _shares(service: _Service, *, waiting: int, seconds: float, rounds: int) -> list[float]:
    """Per round, the CPU time of the service over the time that passed."""
    async with _client(service) as client:
        route = f"{NOOP}?wait=1"
        ids = [await _send(client, route, key=str(number)) for number in range(waiting)]
        polls = [asyncio.create_task(_poll(client, request_id)) for request_id in ids]
        await asyncio.sleep(5)  # until all have connected
        shares = []
        for number in range(rounds):
            began, used = time.perf_counter(), _cpu_seconds(service)
            await asyncio.sleep(seconds)
            shares.append((_cpu_seconds(service) - used) / (time.perf_counter() - began))
            say(f"round {number + 1}: {shares[-1]:.2%} of a core")
        for poll in polls:
            assert not poll.done(), poll.exception()
            poll.cancel()
        await asyncio.gather(*polls, return_exceptions=True)
    return shares


async def _send(client: aiohttp.ClientSession, route: str, *, key: str) -> str:
    async with client.post(route, data=_BODY, headers={"x-idempotency-key": key}) as reply:
        accepted = await reply.json()
    return str(accepted["request_id"])


async def _poll(client: aiohttp.ClientSession, request_id: str) -> None:
    while True:
        async with client.post(_POLL, json={"request_id": request_id}) as reply:
            waiting = await reply.json()
            assert waiting["type"] == "try_again"


def _cpu_seconds(service: _Service) -> float:
    times = service.process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    main(sys.argv[1:])
