"""What waiting for the Tinker service costs: python benchmarks/tinker_futures.py.

A training job that computes next to nothing, one after another over HTTP on loopback, through the
whole service but for the trainer's mathematics (tinker_noop_service.py): from sending it to having
its answer. And the share of a core that the service uses while many clients each hold a poll for a
sample that is not answered, over whole rounds of polls.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np
import psutil
from interleaved import FOLDER, HEAD, machine, mean, row, say
from tinker_noop_service import MODEL

from enginehouse.tinker.wire.schema import PROTOBUF, messages

_LATENCY_BUDGET, _SHARE_BUDGET = 5.0, 0.05  # milliseconds, of a core
_POLL = "/api/v1/retrieve_future"
_HEADERS = {"x-api-key": "tml-bench", "accept": "application/json, application/x-protobuf"}
_TOKENS = list(range(1, 9))


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
        asyncio.run(_latencies(service, jobs=asked.jobs))  # warms up
        for number in range(asked.rounds):
            latencies = asyncio.run(_latencies(service, jobs=asked.jobs))
            medians.append(float(np.median(latencies)))
            tails.append(float(np.quantile(latencies, 0.99)))
            say(f"round {number + 1}: median {medians[-1]:.2f} ms, p99 {tails[-1]:.2f} ms")
    with _service("held") as service:
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
def _service(*words: str) -> Iterator[_Service]:
    """The service in a process of its own, with an empty home."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(FOLDER / "tinker_noop_service.py"), folder, *words]
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


async def _latencies(service: _Service, *, jobs: int) -> list[float]:
    """Milliseconds of each job, asked by one client with one connection, of a model of its own."""
    latencies = []
    async with _client(service) as client:
        session = await _post(client, "create_session", {"tags": [], "sdk_version": "0.38.0"})
        body = {
            "session_id": session["session_id"],
            "model_seq_id": 0,
            "base_model": MODEL,
            "lora_config": {"rank": 4, "seed": 1},
        }
        asked = await _post(client, "create_model", body)
        model = json.loads(await _answer(client, asked["request_id"]))["model_id"]
        for number in range(1, jobs + 1):
            began = time.perf_counter()
            asked = await _post(client, "forward_backward", _forward(model, number))
            assert await _answer(client, asked["request_id"])
            latencies.append(1000 * (time.perf_counter() - began))
    return latencies


def _forward(model_id: str, seq_id: int) -> bytes:
    """A forward pass over one short sequence."""
    wire = messages()
    request = wire.ForwardBackwardRequest(
        model_id=model_id, seq_id=seq_id, loss_fn="cross_entropy", forward_only=True
    )
    datum = request.data.add()
    datum.model_input.add().encoded_text.tokens = np.array(_TOKENS, np.int32).tobytes()
    for name, dtype, values in (
        ("target_tokens", wire.DTYPE_INT64, np.array(_TOKENS, np.int64)),
        ("weights", wire.DTYPE_FLOAT32, np.ones(len(_TOKENS), np.float32)),
    ):
        tensor = wire.Tensor(dtype=dtype, shape=[len(values)], dense=values.tobytes())
        datum.loss_fn_inputs[name].CopyFrom(tensor)
    return bytes(request.SerializeToString())


async def _shares(service: _Service, *, waiting: int, seconds: float, rounds: int) -> list[float]:
    """Per round, the CPU time of the service over the time that passed."""
    async with _client(service) as client:
        session = await _post(client, "create_session", {"tags": [], "sdk_version": "0.38.0"})
        body = {
            "session_id": session["session_id"],
            "sampling_session_seq_id": 0,
            "base_model": MODEL,
        }
        sampler = await _post(client, "create_sampling_session", body)
        ask = {
            "sampling_session_id": sampler["sampling_session_id"],
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": _TOKENS}]},
            "sampling_params": {"max_tokens": 4},
            "type": "sample",
        }
        asked = [
            await _post(client, "asample", ask | {"seq_id": number}) for number in range(waiting)
        ]
        ids = [one["request_id"] for one in asked]
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


async def _post(client: aiohttp.ClientSession, route: str, body: bytes | dict[str, Any]) -> Any:
    """What a route answers to a protobuf message or a JSON object."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = PROTOBUF if isinstance(body, bytes) else "application/json"
    headers = {"content-type": kind}
    async with client.post(f"/api/v1/{route}", data=data, headers=headers) as reply:
        content = await reply.json()
        assert reply.status == 200, content
        return content


async def _answer(client: aiohttp.ClientSession, request_id: str) -> bytes:
    """What a future gives."""
    async with client.post(_POLL, json={"request_id": request_id}) as reply:
        content = await reply.read()
        assert reply.status == 200, content
        assert b"try_again" not in content, content
        assert b'"error"' not in content, content
        return content


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
