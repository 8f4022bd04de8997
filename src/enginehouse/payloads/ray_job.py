"""The program of a job on a Ray cluster: reserve nodes for it, and run its commands there.

It runs in Ray's own Python as the entrypoint of one of Ray's jobs, with `job.json` and
`ray_node.py` beside it, and the values of secrets as JSON on file descriptor 3. It needs no CPU or
GPU itself. What the commands need is one placement group: a job gets all of its nodes or waits,
and one that waits can be stopped, which Ray's own `entrypoint_num_gpus` does not allow.

job.json has `name` (of the placement group), `folder` and `files` (see ray_node.py), `resources`
(of each node: "CPU", "GPU", "memory"), `walltime` (seconds, or null), `grace` (seconds that a
command gets to end) and `nodes`. Each node has `name`, `command` (an argv, or null for a node that
is only reserved), `before`, `environment`, `from_machine`, and `secrets`, the names of those that
its command gets. The first node runs the job's own command; `{head}` in the words of the others is
its address.

The exit code is that of the job's command, or one of `TIMED_OUT`, `COMPANION_ENDED`, `NODE_LOST`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

TIMED_OUT, COMPANION_ENDED, NODE_LOST = 240, 241, 242
_LONGEST_LINE = 1 << 20  # bytes; a longer one is printed in parts
_HERE = Path(__file__).parent
_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"


class Node:
    """An actor that holds the resources of one node, and runs a command there."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def address(self) -> str:
        """The node's IP address."""
        return str(ray.util.get_node_ip_address())

    def run(self, program: str, order: dict[str, Any]) -> Iterator[bytes | int]:
        """The command's output in pieces, and at last its exit code."""
        self._process = process = subprocess.Popen(
            (sys.executable, "-c", program),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
        if self._stopped:
            process.stdin.close()
        while piece := os.read(process.stdout.fileno(), 1 << 16):
            yield piece
        yield process.wait()

    def stop(self) -> None:
        """End the command, and return when none of its processes is left."""
        self._stopped = True
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()


class _Ended(Exception):  # noqa: N818 - the job's end, which may be a success
    """The job has ended, with this exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def main() -> None:
    """Run the job to its end, and exit with its code."""
    with os.fdopen(3) as values:
        secrets = json.load(values)
    job = json.loads((_HERE / "job.json").read_text(encoding="utf-8"))
    # Whatever connects to Ray inside the job must not get this program's runtime environment: its
    # package has the secrets, and would be unpacked on every node.
    config = json.loads(os.environ.get(_CONFIG, "{}"))
    os.environ[_CONFIG] = json.dumps({**config, "runtime_env": {}})
    ray.init(log_to_driver=False, logging_level="error")
    signal.signal(signal.SIGTERM, _on_stop)  # in place of Ray's own handler, which ends the process
    group = placement_group(
        [job["resources"]] * len(job["nodes"]),
        strategy="STRICT_SPREAD" if len(job["nodes"]) > 1 else "PACK",
        name=job["name"],
    )
    actors: list[Any] = []
    commands: list[_Command] = []
    try:
        _await(group, job)
        actors.extend(_actors(group, job["resources"]))
        commands.extend(_start(actors, job, secrets))
        code = _run(commands, walltime=job["walltime"])
    except _Ended as end:
        code = end.code
    except ray.exceptions.RayError as error:
        _say(f"a node was lost: {error}")
        code = NODE_LOST
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _stop(actors, commands, patience=job["grace"] + 10)
        remove_placement_group(group)
    sys.exit(code)


def _on_stop(*_: object) -> None:
    raise _Ended(128 + signal.SIGTERM)


def _await(group: PlacementGroup, job: dict[str, Any]) -> None:
    """Wait until the job has its nodes."""
    if not group.wait(1):
        wanted = ", ".join(f"{amount:g} {name}" for name, amount in job["resources"].items())
        _say(f"waiting for {len(job['nodes'])} node(s), each with {wanted}")
        while not group.wait(1):
            pass


def _actors(group: PlacementGroup, resources: dict[str, float]) -> Iterator[Any]:
    for number in range(group.bundle_count):
        where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number)
        yield (
            ray.remote(Node)
            .options(
                num_cpus=resources.get("CPU", 0),
                num_gpus=resources.get("GPU", 0),
                memory=resources.get("memory"),
                max_concurrency=4,
                scheduling_strategy=where,
            )
            .remote()
        )


def _start(actors: list[Any], job: dict[str, Any], secrets: dict[str, str]) -> Iterator[_Command]:
    """Start the command of each node that has one, the job's own first, once all are there."""
    program = (_HERE / "ray_node.py").read_text(encoding="utf-8")
    head, *_ = ray.get([actor.address.remote() for actor in actors])
    for actor, node in zip(actors, job["nodes"], strict=True):
        if node["command"] is not None:
            order = {
                "folder": job["folder"],
                "files": job["files"],
                "before": node["before"],
                "command": [word.replace("{head}", head) for word in node["command"]],
                "environment": {
                    "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
                    **node["environment"],
                    **{name: secrets[name] for name in node["secrets"]},
                },
                "from_machine": node["from_machine"],
                "grace": job["grace"],
            }
            stream = actor.run.options(num_returns="streaming").remote(program, order)
            yield _Command(stream, companion=None if node is job["nodes"][0] else node["name"])


def _run(commands: list[_Command], *, walltime: float | None) -> int:
    """The exit code, once a command has ended or the time is up; what is left runs on."""
    deadline = time.monotonic() + (walltime or float("inf"))
    while time.monotonic() < deadline:
        for command in _ready(commands, timeout=1):
            command.read()
            if command.exit_code is None:
                continue
            if command.companion is None:
                return command.exit_code
            _say(f"{command.companion} ended by itself, with exit code {command.exit_code}")
            return COMPANION_ENDED
    _say(f"the time limit of {walltime} s is over")
    return TIMED_OUT


def _stop(actors: list[Any], commands: list[_Command], *, patience: float) -> None:
    """End all commands, and print what they had printed and print until then."""
    deadline = time.monotonic() + patience
    stops = [actor.stop.remote() for actor in actors]
    running = [command for command in commands if command.exit_code is None]
    while running and (left := deadline - time.monotonic()) > 0:
        for command in _ready(running, timeout=left):
            try:
                command.read()
            except (ray.exceptions.RayError, StopIteration):  # its node was lost
                running.remove(command)
            else:
                if command.exit_code is not None:
                    running.remove(command)
    for command in commands:
        command.flush()
    if stops:
        ray.wait(stops, num_returns=len(stops), timeout=max(deadline - time.monotonic(), 0))


def _ready(commands: list[_Command], *, timeout: float) -> list[_Command]:
    """All commands that have printed something or ended; waits for the first of them."""
    streams = {command.stream: command for command in commands}
    ready, _ = ray.wait(list(streams), timeout=timeout)
    if ready:  # Ray names the first one alone, which may print without a pause
        ready, _ = ray.wait(list(streams), num_returns=len(streams), timeout=0)
    return [streams[stream] for stream in ready]


class _Command:
    """A command that an actor runs; its output is printed line by line.

    `companion` is the name of a companion, which stands before each of its lines.
    """

    def __init__(self, stream: Any, *, companion: str | None) -> None:
        self.stream = stream
        self.companion = companion
        self.exit_code: int | None = None
        self._line = b""  # begun, and not printed

    def read(self) -> None:
        """Print the next piece of output, or note the exit code. Raises RayError."""
        piece = ray.get(next(self.stream))
        if isinstance(piece, int):
            self.exit_code = piece
            self.flush()
            return
        *lines, self._line = (self._line + piece).split(b"\n")
        if len(self._line) > _LONGEST_LINE:
            lines.append(self._line)
            self._line = b""
        self._print(lines)

    def flush(self) -> None:
        """Print a last line that has no end."""
        if self._line:
            self._print([self._line])
            self._line = b""

    def _print(self, lines: list[bytes]) -> None:
        prefix = b"" if self.companion is None else f"[{self.companion}] ".encode()
        sys.stdout.buffer.write(b"".join(prefix + line + b"\n" for line in lines))
        sys.stdout.buffer.flush()


def _say(text: str) -> None:
    print(f"enginehouse: {text}", flush=True)


if __name__ == "__main__":
    main()
