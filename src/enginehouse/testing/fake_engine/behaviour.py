"""How a fake misbehaves, chosen by environment variables (all begin with VLLM_FAKE_).

VLLM_FAKE_START_ERROR    text: print vLLM's traceback around it and exit 1
VLLM_FAKE_START_DELAY    seconds before it listens; inf means never
VLLM_FAKE_START_PROGRESS seconds between progress lines until then; unset writes none
VLLM_FAKE_START_LINES    the most progress lines that it writes before it falls silent
VLLM_FAKE_IGNORE_SIGTERM 1: only SIGKILL ends it
VLLM_FAKE_CHILD          group or session: leave an EngineCore process behind that ignores SIGTERM,
                         in this process's group or in a session of its own; it ends after a minute.
                         core: an EngineCore process like vLLM's: it ends with this process, and if
                         it ends first, the engine is dead (the fault die, without a cause)
VLLM_FAKE_FAULTS         a JSON array, or the path of a file with one: which requests fail, and how,
                         as described in faults.py. With [{"fault": "die", "match": "poison"}] any
                         request with that word kills the engine and all requests in flight
VLLM_FAKE_STATE          path of a file in which the counts of the faults outlive the process
VLLM_FAKE_ANSWERS        path of a JSON object: regular expression → answer
VLLM_FAKE_TOKEN_LATENCY  seconds per generated token
VLLM_FAKE_RECORD         path of a file to which every start appends a JSON line: pid, argv, env
VLLM_FAKE_REQUESTS       path of a file to which every POST appends a JSON line: path, body
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

_CHILD = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""
_CORE = "import sys; sys.stdin.read()"
_MOMENT = "11-21 03:52:51"
ENGINE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."


class Behaviour(msgspec.Struct, frozen=True, kw_only=True):
    """The variables above, read."""

    start_error: str | None = None
    start_delay: float = 0.0
    ignore_sigterm: bool = False
    child: str | None = None
    answers: str | None = None
    token_latency: float = 0.0
    record: str | None = None
    start_progress: float = math.inf
    start_lines: float = math.inf
    faults: str | None = None
    state: str | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Behaviour:
        """Read the variables; a wrong value raises ValueError."""

        def get(name: str) -> str | None:
            return environment.get(f"VLLM_FAKE_{name}") or None

        return cls(
            start_error=get("START_ERROR"),
            start_delay=float(get("START_DELAY") or 0),
            ignore_sigterm=get("IGNORE_SIGTERM") == "1",
            child=get("CHILD"),
            answers=get("ANSWERS"),
            token_latency=float(get("TOKEN_LATENCY") or 0),
            record=get("RECORD"),
            start_progress=float(get("START_PROGRESS") or math.inf),
            start_lines=float(get("START_LINES") or math.inf),
            faults=get("FAULTS"),
            state=get("STATE"),
        )


def record_start(path: str, argv: Sequence[str]) -> None:
    """Append what this process was started with."""
    line = {"pid": os.getpid(), "argv": list(argv), "env": dict(os.environ)}
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def leave_child(where: str) -> int:
    """Start the process that will survive us, and return its id when it ignores SIGTERM."""
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=where == "session",
    )
    assert child.stdout is not None
    child.stdout.readline()
    return child.pid


@asynccontextmanager
async def engine_core() -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that looks like vLLM's EngineCore; it ends with this one, however this one ends."""
    core = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _CORE, "VLLM::EngineCore", stdin=asyncio.subprocess.PIPE
    )
    try:
        yield core
    finally:
        if core.returncode is None:
            core.kill()
        await core.wait()


def start_error_log(message: str) -> str:
    """What vLLM prints when its engine core fails with `message`."""
    server = f"(APIServer pid={os.getpid()})"
    return "\n".join(
        [
            _core_failure(
                "EngineCore failed to start.",
                place="core.py:1132",
                call="engine_core = EngineCoreProc(*args, **kwargs)",
                cause=message,
            ),
            f"{server} Traceback (most recent call last):",
            f'{server}   File "vllm/v1/engine/utils.py", line 980, in wait_for_engine_startup',
            f"{server} RuntimeError: Engine core initialization failed. See root cause above.",
            "",
        ]
    )


def death_log(cause: str) -> str:
    """What vLLM prints when its engine core dies at work; without a cause, when it was killed."""
    server = f"(APIServer pid={os.getpid()})"
    first = f"{server} WARNING {_MOMENT} [core_client.py:817] [shutdown] MPClient: engine core "
    first += "exited unexpectedly; starting cleanup"
    if cause:
        first = _core_failure(
            "EngineCore encountered a fatal error.",
            place="core.py:1512",
            call="engine_core.run_busy_loop()",
            cause=cause,
        )
    lines = (
        "AsyncLLM output_handler failed.",
        "Traceback (most recent call last):",
        '  File "vllm/v1/engine/core_client.py", line 1189, in get_output_async',
        "    raise self._format_exception(outputs) from None",
        f"vllm.v1.engine.exceptions.EngineDeadError: {ENGINE_DEAD}",
    )
    prefix = f"{server} ERROR {_MOMENT} [async_llm.py:906] "
    return "\n".join([first, *(prefix + line for line in lines), ""])


def _core_failure(what: str, *, place: str, call: str, cause: str) -> str:
    lines = (
        what,
        "Traceback (most recent call last):",
        '  File "vllm/v1/engine/core.py", line 1123, in run_engine_core',
        f"    {call}",
        cause,
    )
    prefix = f"(EngineCore pid={os.getpid() + 1}) ERROR {_MOMENT} [{place}] "
    return "\n".join(prefix + line for line in lines)
