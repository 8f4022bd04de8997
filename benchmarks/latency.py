"""What we add to the time that a user waits: python benchmarks/latency.py.

`enginehouse --help`, whole; the CPU of a refused option; and our share of `serve`: the time from
the command to its ready line, less that of starting the same engine without us and asking it, every
5 ms, the same three questions (healthy, which models, one token). The engine is the fake one, told
to load for a while that differs from round to round, so that its end meets our looks at it at every
phase.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interleaved import HEAD, machine, mean, row, say

from enginehouse.testing.fake_environment import make_fake_environment

_HELP_BUDGET, _REFUSAL_BUDGET, _SERVE_BUDGET = 0.2, 0.5, 0.5  # seconds
_REFUSED = ("eval", "x", "--task", "gsm8k", "--limit", "0")
_SHORTEST_LOAD, _LOADS = 2.0, 1.0
_PAUSE = 0.005
_MODEL = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b'{"chat_template": "{{ messages }}"}',
    "model.safetensors": b"\2\0\0\0\0\0\0\0{}",
}


def main(arguments: Sequence[str]) -> None:
    """Measure and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    asked = parser.parse_args(arguments)
    say(machine())
    helps = [_help() for _ in range(asked.rounds + 1)][1:]
    refusals = [_refusal() for _ in range(asked.rounds + 1)][1:]
    shares = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = make_fake_environment(folder / "environment")
        for file, content in _MODEL.items():
            (folder / "tiny").mkdir(exist_ok=True)
            (folder / "tiny" / file).write_bytes(content)
        _serve(folder, python, load=0.0)  # the first one tries the environment and keeps its answer
        for number in range(asked.rounds):
            load = _SHORTEST_LOAD + _LOADS * number / asked.rounds
            ours = _serve(folder, python, load=load)
            bare = _bare(folder)
            shares.append(ours - bare)
            say(f"loading for {load:.2f} s: ready after {ours:.3f} s, bare {bare:.3f} s")
    print(HEAD)
    print(row("`enginehouse --help`, seconds", mean(helps), at_most=_HELP_BUDGET))
    words = " ".join(_REFUSED)
    label = f"`enginehouse {words}`, which is refused, CPU seconds"
    print(row(label, mean(refusals), at_most=_REFUSAL_BUDGET))
    print(row("our share of `serve` to ready, seconds", mean(shares), at_most=_SERVE_BUDGET))


def _help() -> float:
    began = time.perf_counter()
    command = [sys.executable, "-m", "enginehouse", "--help"]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def _refusal() -> float:
    """CPU seconds of an option that is out of bounds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "enginehouse", *_REFUSED]
    refused = subprocess.run(command, check=False, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert refused.returncode == 2
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _serve(folder: Path, python: Path, *, load: float) -> float:
    """Seconds from the command to its ready line."""
    (folder / "started").unlink(missing_ok=True)
    variables = (f"VLLM_FAKE_START_DELAY={load}", f"VLLM_FAKE_RECORD={folder / 'started'}")
    command = [sys.executable, "-m", "enginehouse", "serve", str(folder / "tiny"), "--json"]
    command += ["--quiet", "--python", str(python), *(w for v in variables for w in ("--env", v))]
    began = time.perf_counter()
    env = os.environ | {"ENGINEHOUSE_HOME": str(folder / "home")}
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        seconds = time.perf_counter() - began
        process.send_signal(signal.SIGINT)
    if not said:
        sys.exit("enginehouse serve ended before it was ready")
    return seconds


def _bare(folder: Path) -> float:
    """Seconds from starting the engine that `_serve` started, just so, to its first token."""
    started: dict[str, Any] = json.loads((folder / "started").read_text().splitlines()[-1])
    argv, env = started["argv"], started["env"]
    port = int(argv[argv.index("--port") + 1])
    python = folder / "environment" / "bin" / "python"
    command = [python, "-m", "vllm.entrypoints.openai.api_server", *argv]
    question = {"model": "tiny", "prompt": "1", "max_tokens": 1, "temperature": 0.0}
    began = time.perf_counter()
    with subprocess.Popen(
        command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            while not _answers(port, "/health"):
                if process.poll() is not None:
                    sys.exit(f"the engine ended with {process.returncode}")
                time.sleep(_PAUSE)
            fine = _answers(port, "/v1/models") and _answers(port, "/v1/completions", question)
            seconds = time.perf_counter() - began
        finally:
            process.kill()
    if not fine:
        sys.exit("the engine is healthy but does not answer")
    return seconds


def _answers(port: int, path: str, body: dict[str, Any] | None = None) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        if body is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    main(sys.argv[1:])
