"""How a fake misbehaves, chosen by environment variables (all begin with VLLM_FAKE_).

VLLM_FAKE_START_ERROR    text: print vLLM's traceback around it and exit 1
VLLM_FAKE_START_DELAY    seconds before it listens; inf is never
VLLM_FAKE_IGNORE_SIGTERM 1: only SIGKILL ends it
VLLM_FAKE_CHILD          group or session: leave an EngineCore process behind that ignores SIGTERM,
                         in this process's group or in a session of its own; it ends after a minute
VLLM_FAKE_ANSWERS        path of a JSON object: regular expression → answer
VLLM_FAKE_TOKEN_LATENCY  seconds per generated token
VLLM_FAKE_RECORD         path of a file to which every start appends a JSON line: pid, argv, env
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

_CHILD = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""


class Behaviour(msgspec.Struct, frozen=True, kw_only=True):
    """The variables above, read."""

    start_error: str | None = None
    start_delay: float = 0.0
    ignore_sigterm: bool = False
    child: str | None = None
    answers: str | None = None
    token_latency: float = 0.0
    record: str | None = None

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


def start_error_log(message: str) -> str:
    """What vLLM prints when its engine core fails with `message`."""
    pid = os.getpid()
    core = f"(EngineCore pid={pid + 1}) ERROR 11-21 03:52:51 [core.py:1132]"
    lines = (
        "EngineCore failed to start.",
        "Traceback (most recent call last):",
        '  File "vllm/v1/engine/core.py", line 1123, in run_engine_core',
        "    engine_core = EngineCoreProc(*args, **kwargs)",
        message,
    )
    server = f"(APIServer pid={pid})"
    return "\n".join(
        [
            *(f"{core} {line}" for line in lines),
            f"{server} Traceback (most recent call last):",
            f'{server}   File "vllm/v1/engine/utils.py", line 980, in wait_for_engine_startup',
            f"{server} RuntimeError: Engine core initialization failed. See root cause above.",
            "",
        ]
    )
