"""The faults that end the fake engine, or keep it from starting: log, exit code, counts."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest


async def ask(session: aiohttp.ClientSession) -> int:
    """Ask for the engine's death; the status of the answer."""
    asked = {"messages": [{"role": "user", "content": "poison"}], "max_tokens": 8}
    async with session.post("/v1/chat/completions", json=asked) as reply:
        await reply.read()
        return reply.status


@asynccontextmanager
async def process(log: Path, **env: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A fake engine whose log and end can be seen; it must end by itself."""
    command = ("-m", "enginehouse.testing.fake_engine", "--model", "m", "--port", "0")
    with log.open("wb") as out:
        started = await asyncio.create_subprocess_exec(
            sys.executable, *command, env=os.environ | env, stdout=out, stderr=out
        )
    try:
        async with asyncio.timeout(20):
            yield started
            await started.wait()
    finally:
        if started.returncode is None:
            started.kill()
            await started.wait()


async def until(condition: Callable[[], object]) -> None:
    """Wait until it is true."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (another process makes it true)
            await asyncio.sleep(0.01)


async def url_in(log: Path) -> str:
    """The address once it listens."""
    await until(lambda: "Application startup complete" in log.read_text())
    return found(r"server on (http://\S+)", log)


def found(pattern: str, log: Path) -> str:
    """What the log says."""
    return str(re.findall(pattern, log.read_text())[0])


def command_of(pid: int) -> bytes:
    """A process's command line, empty when there is none (any more)."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


async def kill_by_request(log: Path) -> None:
    """Ask for the engine's death."""
    async with aiohttp.ClientSession(await url_in(log)) as session:
        with suppress(aiohttp.ClientError):
            await ask(session)


@pytest.mark.slow
async def test_the_log_of_a_death(tmp_path: Path):
    """EngineCore's traceback, its cause, then EngineDeadError; vLLM's exit code is 0."""
    log = tmp_path / "log"
    cause = "RuntimeError: einsum(): subscript b has size 3"
    faults = json.dumps([{"fault": "die", "match": "poison", "cause": cause}])
    async with process(log, VLLM_FAKE_FAULTS=faults) as engine:
        await kill_by_request(log)
    assert engine.returncode == 0
    words = log.read_text()
    places = [words.index(part) for part in ("encountered a fatal error", cause, "EngineDeadError")]
    assert places == sorted(places)
    assert re.search(
        rf"^\(EngineCore pid=\d+\) ERROR .*\] {re.escape(cause)}$", words, re.MULTILINE
    )


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [({"exit_code": 7}, 7), ({"signal": 9}, -signal.SIGKILL)])
async def test_how_a_process_ends(tmp_path: Path, how: Mapping[str, int], code: int):
    """With the exit code; or of a signal, and then it had no time to say anything."""
    log = tmp_path / "log"
    faults = json.dumps([{"fault": "die", "match": "poison", **how}])
    async with process(log, VLLM_FAKE_FAULTS=faults) as engine:
        await kill_by_request(log)
    assert engine.returncode == code
    assert ("EngineDeadError" in log.read_text()) == (code == 7)


@pytest.mark.slow
async def test_counts_that_outlive_the_process(tmp_path: Path):
    """The first two starts die on their first request, the third start fails, the fourth lives."""
    faults: list[dict[str, Any]] = [
        {"fault": "die", "first": 2, "linger": 0},
        {"fault": "no_start", "nth": [3], "cause": "torch.OutOfMemoryError: out of memory"},
    ]
    env = {"VLLM_FAKE_FAULTS": json.dumps(faults), "VLLM_FAKE_STATE": str(tmp_path / "state")}
    for number in (1, 2):
        log = tmp_path / f"log-{number}"
        async with process(log, **env):
            await kill_by_request(log)
    async with process(tmp_path / "log-3", **env) as failing:
        pass
    assert failing.returncode == 1
    assert "OutOfMemoryError: out of memory" in (tmp_path / "log-3").read_text()
    log = tmp_path / "log-4"
    async with process(log, **env) as living:
        async with aiohttp.ClientSession(await url_in(log)) as session:
            assert await ask(session) == 200
        living.terminate()
    assert living.returncode == 0


@pytest.mark.slow
async def test_a_start_with_progress_that_falls_silent(tmp_path: Path):
    """Three lines, then nothing; SIGTERM ends it."""
    log = tmp_path / "log"
    env = {"START_DELAY": "inf", "START_PROGRESS": "0.05", "START_LINES": "3"}
    async with process(log, **{f"VLLM_FAKE_{key}": value for key, value in env.items()}) as engine:
        await until(lambda: "3 of many completed" in log.read_text())
        await asyncio.sleep(0.2)
        assert log.read_text().count("Loading safetensors") == 3
        engine.terminate()
    assert engine.returncode == 0


@pytest.mark.slow
async def test_a_start_that_gets_on_and_is_done(tmp_path: Path):
    """Lines until it listens."""
    log = tmp_path / "log"
    async with process(log, VLLM_FAKE_START_DELAY="0.3", VLLM_FAKE_START_PROGRESS="0.05") as engine:
        await url_in(log)
        assert 2 <= log.read_text().count("Loading safetensors") <= 6
        engine.terminate()


@pytest.mark.slow
async def test_an_engine_core_that_is_killed(tmp_path: Path):
    """Its end is the engine's, as in vLLM; and it ends with the server, even with kill -9."""
    log = tmp_path / "log"
    async with process(log, VLLM_FAKE_CHILD="core") as engine:
        await url_in(log)
        core = int(found(r"EngineCore pid=(\d+)", log))
        assert b"VLLM::EngineCore" in command_of(core)
        os.kill(core, signal.SIGKILL)
    assert engine.returncode == 0
    assert "engine core exited unexpectedly" in log.read_text()
    other = tmp_path / "other"
    async with process(other, VLLM_FAKE_CHILD="core") as engine:
        await url_in(other)
        core = int(found(r"EngineCore pid=(\d+)", other))
        engine.kill()
    await until(lambda: not command_of(core))
