"""Running a fake engine from a test."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

_ADDRESS = re.compile(rb"Starting vLLM server on (http://\S+)")
_SOURCE = Path(__file__).resolve().parents[3]


class FakeEngineHandle(msgspec.Struct, frozen=True):
    """A running fake: its base URL (without /v1) and its process id."""

    url: str
    pid: int


@asynccontextmanager
async def running_fake_engine(
    *arguments: str,
    model: str = "fake-model",
    answers: Mapping[str, str] | None = None,
    token_latency: float = 0.0,
    faults: Sequence[Mapping[str, Any]] = (),
    env: Mapping[str, str] | None = None,
    start_timeout: float = 30.0,
) -> AsyncIterator[FakeEngineHandle]:
    """A fake engine in a process of its own on a port from the kernel; killed when the block ends.

    `arguments` are further flags. `answers` maps regular expressions on the last user message (or
    the whole text prompt) to answers; `faults` are those of faults.py. Adapter and development
    endpoints are on; `env` is added to the environment (VLLM_FAKE_…, VLLM_API_KEY …). Raises
    TimeoutError or RuntimeError, with its output, if it does not start.
    """
    with tempfile.TemporaryDirectory() as folder:
        variables = {
            **os.environ,
            "PYTHONPATH": str(_SOURCE),
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_FAKE_TOKEN_LATENCY": str(token_latency),
            "VLLM_FAKE_FAULTS": json.dumps(list(faults)),
        }
        if answers is not None:
            file = Path(folder) / "answers.json"
            file.write_text(json.dumps(answers), encoding="utf-8")
            variables["VLLM_FAKE_ANSWERS"] = str(file)
        command = ("-m", "enginehouse.testing.fake_engine", "--model", model, "--port", "0")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            *arguments,
            env=variables | dict(env or {}),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        drain: asyncio.Task[None] | None = None
        try:
            url = await asyncio.wait_for(_address(process), start_timeout)
            drain = asyncio.create_task(_drain(process))
            yield FakeEngineHandle(url=url, pid=process.pid)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            if drain is not None:
                await drain


async def _address(process: asyncio.subprocess.Process) -> str:
    """Read the log up to the line that names the address."""
    assert process.stdout is not None
    lines: list[bytes] = []
    async for line in process.stdout:
        lines.append(line)
        if found := _ADDRESS.search(line):
            return found[1].decode()
    output = b"".join(lines).decode("utf-8", "replace")
    raise RuntimeError(f"the fake engine did not start:\n{output}")


async def _drain(process: asyncio.subprocess.Process) -> None:
    """Keep the pipe from filling."""
    assert process.stdout is not None
    while await process.stdout.read(2**16):
        pass
