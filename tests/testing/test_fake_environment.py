"""A fake engine environment, used as an engine environment is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from enginehouse.testing.fake_environment import make_fake_environment

SERVER = "vllm.entrypoints.openai.api_server"
FLAGS = """
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
print(*(flag for action in parser._actions for flag in action.option_strings))
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The environment's Python."""
    return make_fake_environment(tmp_path / "environment", version="0.31.0")


async def run(python: Path, *arguments: str, **env: str) -> tuple[int, str]:
    """Exit code and output of a command with nothing but PATH and `env` in its environment."""
    process = await asyncio.create_subprocess_exec(
        python,
        *arguments,
        env={"PATH": os.environ["PATH"], **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


@asynccontextmanager
async def serving(
    python: Path, *, until: bytes = b"startup complete", **env: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A server process, entered when its log says `until`; with the log so far."""
    process = await asyncio.create_subprocess_exec(
        python,
        *("-m", SERVER, "--model", "m", "--port", "0"),
        env={"PATH": os.environ["PATH"], **env},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    log = b""
    try:
        async with asyncio.timeout(30):
            while until not in log:
                line = await process.stdout.readline()
                assert line, log
                log += line
        yield process, log.decode()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_the_engine_imports_with_its_version(python: Path):
    """Also isolated from the caller's variables, and it is the folder's own Python."""
    code = "import sys, vllm; print(vllm.__version__, sys.prefix)"
    assert await run(python, "-I", "-c", code) == (0, f"0.31.0 {python.parents[1]}\n")


async def test_flags_can_be_listed(python: Path):
    """By the calls that work on the real one; switches have their negation."""
    code, output = await run(python, "-c", FLAGS)
    assert code == 0, output
    flags = output.split()
    for flag in (
        "--max-model-len",
        "-tp",
        "--enforce-eager",
        "--no-enforce-eager",
        "--enable-lora",
    ):
        assert flag in flags
    assert "--swap-space" not in flags


async def test_a_server_runs_and_ends_on_sigterm(python: Path):
    """With its version, in its own process, and exit code 0."""
    async with serving(python) as (process, log):
        url = log.split("Starting vLLM server on ")[1].split()[0]
        opened = await asyncio.to_thread(urllib.request.urlopen, f"{url}/version")
        with opened:
            assert json.load(opened) == {"version": "0.31.0"}
        assert f"Started server process [{process.pid}]" in log
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 30) == 0


async def test_an_unknown_flag_is_refused(python: Path):
    """As argparse does, with exit code 2."""
    code, output = await run(python, "-m", SERVER, "--swap-space", "4")
    assert code == 2
    assert "unrecognized arguments: --swap-space 4" in output


async def test_a_taken_port_ends_it(python: Path):
    """With the operating system's words."""
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    async with server:
        port = str(server.sockets[0].getsockname()[1])
        code, output = await run(python, "-m", SERVER, "--port", port)
    assert code == 1
    assert "address already in use" in output


async def test_failing_at_start(python: Path):
    """The cause stands in the EngineCore's lines; the server's own say nothing."""
    cause = "ValueError: Free memory on device is less than desired"
    code, output = await run(python, "-m", SERVER, VLLM_FAKE_START_ERROR=cause)
    assert code == 1
    assert "(EngineCore pid=" in output
    assert cause in output
    assert "RuntimeError: Engine core initialization failed." in output


async def test_never_becoming_healthy(python: Path):
    """It lives, listens nowhere, and still ends on SIGTERM."""
    async with serving(python, until=b"non-default", VLLM_FAKE_START_DELAY="inf") as (process, _):
        assert not psutil.Process(process.pid).net_connections("inet")
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 30) in (0, -signal.SIGTERM)


async def test_ignoring_sigterm(python: Path):
    """Only SIGKILL ends it: it answers after SIGTERM."""
    async with serving(python, VLLM_FAKE_IGNORE_SIGTERM="1") as (process, log):
        process.terminate()
        url = log.split("Starting vLLM server on ")[1].split()[0]
        opened = await asyncio.to_thread(urllib.request.urlopen, f"{url}/health")
        with opened:
            assert opened.status == 200
        assert process.returncode is None


@pytest.mark.parametrize("where", ["group", "session"])
async def test_a_child_survives(python: Path, where: str):
    """In the server's group or out of it, deaf to SIGTERM."""
    async with serving(python, VLLM_FAKE_CHILD=where) as (process, log):
        child = psutil.Process(int(log.split("EngineCore pid=")[1].split()[0]))
        try:
            assert child.ppid() == process.pid
            assert (os.getpgid(child.pid) == os.getpgid(process.pid)) == (where == "group")
            process.kill()
            await process.wait()
            child.terminate()
            assert child.is_running()
        finally:
            child.kill()


@pytest.mark.slow
async def test_starts_are_recorded(python: Path, tmp_path: Path):
    """Arguments and environment, so that a launcher's tests can look at them."""
    record = tmp_path / "record.jsonl"
    for _ in range(2):
        await run(
            python,
            *("-m", SERVER, "--model", "m"),
            VLLM_FAKE_START_ERROR="x",
            VLLM_FAKE_RECORD=str(record),
            SECRET="s",
        )
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line["argv"] for line in lines] == [["--model", "m"]] * 2
    assert lines[0]["env"]["SECRET"] == "s"
