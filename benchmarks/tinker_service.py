"""The Tinker service beside a bare PEFT loop, and four of its users together beside one by one.

python benchmarks/tinker_service.py starts the service in float32 on this machine, with the real SDK
as its client (both environments are built on first use). The figures are ratios of tokens per
second of forward_backward: what its users see, HTTP and protobuf included. A user sends sequences
of one length; several lengths show where training four adapters in one pass stops paying.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from interleaved import HEAD, interleaved, machine, paired_ratio, row, say
from peer_environments import peer_command

from enginehouse.provisioning.environments import find_environment
from enginehouse.provisioning.models import resolve_model
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout
from enginehouse.tinker.trainers.installation import INSTALLATION

_FOLDER = Path(__file__).parent


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
def _peer(command: Sequence[object], *, env: dict[str, str] | None = None) -> Iterator[Peer]:
    with subprocess.Popen(
        list(map(str, command)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | (env or {}),
    ) as process:
        try:
            yield Peer(process)
        finally:
            process.kill()


@contextmanager
def _service(model: Path, *, home: Path) -> Iterator[str]:
    """The service's address; it samples with hf, which computes nothing meanwhile."""
    words = ["tinker", "serve", "--base-model", str(model), "--home", str(home)]
    words += ["--sampler", "hf", "--dtype", "float32"]
    log = home / "output"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", "enginehouse", *words], stdout=output, stderr=output
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


async def _prepared(model: str) -> tuple[Path, Path]:
    """The trainer's interpreter, and the checkpoint's folder."""
    context = Context(layout=Layout.from_environment(), notify=say)
    environment = await find_environment(
        INSTALLATION, python=None, version=None, variant=None, context=context
    )
    resolved = await resolve_model(model, environment=environment, context=context)
    return environment.executable, Path(resolved.path)


def main(arguments: Sequence[str]) -> None:
    """Measure and print the rows."""
    parser = argparse.ArgumentParser(description=Path(__file__).name)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--sequences", type=int, default=4, help="of each forward_backward")
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    asked = parser.parse_args(arguments)
    print(machine())
    python, model = asyncio.run(_prepared(asked.model))
    print(HEAD)
    with tempfile.TemporaryDirectory() as home, _service(model, home=Path(home)) as url:
        told = {"TINKER_BASE_URL": url, "TINKER_API_KEY": "tml-local", "TINKER_TELEMETRY": "0"}
        for length in asked.lengths:
            with ExitStack() as stack:
                one = [asked.rank, asked.sequences, length]
                bare = [python, _FOLDER / "peers/peft_steps.py", model, *one]
                user = [*peer_command("tinker", "tinker_users.py"), model, asked.rank, 1, *one[1:]]
                few = [*peer_command("tinker", "tinker_users.py"), model, asked.rank, 4, 1, length]
                peft = stack.enter_context(_peer(bare))
                single = stack.enter_context(_peer(user, env=told))
                four = stack.enter_context(_peer(few, env=told))
                measures = {
                    "bare": peft.seconds,
                    "service": single.seconds,
                    "together": partial(four.seconds, "together"),
                    "in turn": partial(four.seconds, "in turn"),
                }
                for measure in measures.values():
                    measure()  # warms up
                found = interleaved(measures, rounds=asked.rounds)
            what = f"{asked.sequences} sequences of {length} tokens"
            ratio = paired_ratio(found["bare"], found["service"])
            print(
                row(
                    f"forward_backward through the service / bare PEFT, {what}", ratio, at_least=0.9
                )
            )
            ratio = paired_ratio(found["in turn"], found["together"])
            wanted = 1.5 if length == 128 else None
            what = f"4 users of one sequence of {length} tokens"
            print(row(f"{what}, together / in turn", ratio, at_least=wanted))


if __name__ == "__main__":
    main(sys.argv[1:])
