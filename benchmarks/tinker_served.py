"""The Tinker service as its users have it, and programs that measure it, for the benchmarks."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from interleaved import say

from enginehouse.provisioning.environments import EngineEnvironment, find_environment
from enginehouse.provisioning.models import resolve_model
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout
from enginehouse.tinker.trainers.installation import INSTALLATION

KEY = "tml-local"


class Peer:
    """A program that answers each line on its standard input with the seconds that it took."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._line()

    def seconds(self, request: str = "one") -> float:
        """One measurement."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{request}\n")
        self._process.stdin.flush()
        return float(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline() or sys.exit(f"{self._process.args} ended")


@contextmanager
def peer(command: Sequence[object], *, url: str | None = None) -> Iterator[Peer]:
    """The program; with `url`, a user of the service there."""
    told = {"TINKER_BASE_URL": url, "TINKER_API_KEY": KEY, "TINKER_TELEMETRY": "0"} if url else {}
    with subprocess.Popen(
        list(map(str, command)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | told,
    ) as process:
        try:
            yield Peer(process)
        finally:
            process.kill()


@contextmanager
def served(
    model: Path, *words: str, home: Path, env: Mapping[str, str] | None = None
) -> Iterator[str]:
    """The address of a service in float32, started with `words` as well."""
    command = ["tinker", "serve", "--base-model", str(model), "--home", str(home)]
    command += ["--dtype", "float32", *words]
    log = home / "output"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", "enginehouse", *command],
            stdout=output,
            stderr=output,
            env=os.environ | (env or {}),
        ) as process,
    ):
        try:
            while "ready: http://" not in (said := log.read_text()):
                if process.poll() is not None:
                    sys.exit(said)
                time.sleep(0.2)
            yield said.partition("ready: ")[2].split()[0]
        finally:
            process.terminate()


def trainer_environment() -> EngineEnvironment:
    """The trainer's environment, built on first use."""
    context = Context(layout=Layout.from_environment(), notify=say)
    return asyncio.run(
        find_environment(INSTALLATION, python=None, version=None, variant=None, context=context)
    )


def checkpoint_of(model: str, environment: EngineEnvironment) -> Path:
    """The folder of a model that may be bundled or on the hub."""
    context = Context(layout=Layout.from_environment(), notify=say)
    resolved = asyncio.run(resolve_model(model, environment=environment, context=context))
    return Path(resolved.path)
