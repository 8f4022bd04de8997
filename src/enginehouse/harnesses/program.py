"""Runs a program in a harness's environment, and hears from it while it runs.

The programs are in payloads/. Each is started with `--request FILE --report DESCRIPTOR`: what it is
to do, as JSON, and where it writes messages, one JSON object per line, through
payloads/harness_reports.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from enginehouse.core.errors import HarnessError
from enginehouse.engines.variables import inherited_variables, path_with
from enginehouse.harnesses.base import HarnessProgress
from enginehouse.processes.process import Command, Process, hold_process
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.servers.readiness import describe_exit

_LOOK = 0.1  # seconds
_LONGEST_MESSAGE = 2**20  # bytes
_LOG_TAIL = 2**16  # bytes


class HarnessFailure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a program gave up; see HarnessError."""

    message: str
    kind: str | None = None
    why: str | None = None
    fix: str | None = None


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One line that a program writes; other keys are ignored."""

    progress: HarnessProgress | None = None
    failure: HarnessFailure | None = None


async def run_program(
    payload: Path,
    request: Mapping[str, Any] | msgspec.Struct,
    *,
    environment: EngineEnvironment,
    folder: Path,
    log: Path,
    variables: Mapping[str, str] | None = None,
    progress: Callable[[HarnessProgress], None] = lambda _: None,
    stop_grace: float = 5.0,
) -> None:
    """Run a program to its end, in a session of its own; its output is appended to `log`.

    `variables` are added to those that it inherits: the usual ones and the hub's. Cancelling ends
    it with all its descendants, by SIGTERM and after `stop_grace` seconds by SIGKILL; if we are
    killed, a reaper does.
    Raises HarnessError: what the program reported, or kind "ended" with the exit status.
    """
    file = _write_request(request, folder=folder)
    receiving, sending = os.pipe()
    argv = (str(environment.executable), str(payload), "--request", str(file))
    command = Command(
        argv=(*argv, "--report", str(sending)),
        env=_variables(environment, variables or {}),
    )
    try:
        with hold_process(command, log=log, inherited=(sending,)) as held:
            process = held.begin()
    except BaseException:
        os.close(receiving)
        raise
    finally:
        os.close(sending)
    failures: list[HarnessFailure] = []

    def hear(message: Message) -> None:
        if message.progress is not None:
            progress(message.progress)
        if message.failure is not None:
            failures.append(message.failure)

    try:
        code = await _attend(process, receiving, hear, stop_grace=stop_grace)
    finally:
        await process.stop(grace=stop_grace)
    if failures:
        last = failures[-1]
        raise HarnessError(last.message, kind=last.kind, why=last.why, fix=last.fix, log=log)
    if code:
        raise HarnessError(
            f"{environment.engine} ended with {describe_exit(code)}",
            kind="ended",
            # One that was killed had no time to say why.
            why=_last_line(log) if code > 0 else None,
            log=log,
        )


def _write_request(request: Mapping[str, Any] | msgspec.Struct, *, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "request.json"
    file.write_bytes(msgspec.json.encode(request))
    return file


async def _attend(
    process: Process, receiving: int, hear: Callable[[Message], None], *, stop_grace: float
) -> int:
    """The exit code, once the program and its descendants have ended and all messages are read."""
    reader = asyncio.StreamReader(limit=_LONGEST_MESSAGE)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(receiving, "rb", buffering=0)
    )
    reading = asyncio.create_task(_read(reader, hear))
    try:
        while (code := process.exit_code()) is None:
            if reading.done():
                reading.result()
            await asyncio.sleep(_LOOK)  # only the kernel knows
        await process.stop(grace=stop_grace)
        await reading
    finally:
        reading.cancel()
        transport.close()
        with contextlib.suppress(asyncio.CancelledError):
            await reading
    return code


async def _read(reader: asyncio.StreamReader, hear: Callable[[Message], None]) -> None:
    async for line in reader:
        hear(msgspec.json.decode(line, type=Message))


def _variables(environment: EngineEnvironment, added: Mapping[str, str]) -> dict[str, str]:
    env = inherited_variables(
        "(HF|HUGGINGFACE|HUGGING_FACE)_.*",
        "(SSL|REQUESTS|CURL)_.*",
        "LANG|LC_.*|TMPDIR|XDG_.*|NLTK_DATA",
    )
    # A proxy is for the data sets, not for the gateway on this machine.
    excluded = env.get("no_proxy") or env.get("NO_PROXY")
    loopback = ",".join(filter(None, [excluded, "localhost,127.0.0.1,::1"]))
    return {
        **env,
        "PATH": path_with(environment.executable, env.get("PATH")),
        "PYTHONNOUSERSITE": "1",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "no_proxy": loopback,
        "NO_PROXY": loopback,
        **added,
    }


def _last_line(log: Path) -> str | None:
    """The last line that a program wrote; None if it wrote nothing."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL))
        lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), None)
