"""What launching a job adds to the time that a user waits: python benchmarks/launch.py.

`enginehouse launch run --dry-run`, whole. And the time from `enginehouse launch run` to the first
answer in the journal of a local job, less that from `enginehouse eval` of the same plan to the
first answer in its run's journal. The engine is the fake one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from interleaved import HEAD, interleaved, machine, mean, row, say
from sums import write_task

from enginehouse.testing.fake_environment import make_fake_environment

_DRY_RUN_BUDGET, _LAUNCH_BUDGET = 1.5, 1.0  # seconds
_LONGEST = 120.0
_LOOK = 0.002
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
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = _write_files(folder)
        _launch(folder, file)  # the first one tries the environment and keeps its answer
        found = interleaved(
            {
                "dry run": lambda: _dry_run(folder, file),
                "launch": lambda: _launch(folder, file),
                "eval": lambda: _eval(folder),
            },
            rounds=asked.rounds,
        )
    added = [ours - bare for ours, bare in zip(found["launch"], found["eval"], strict=True)]
    print(HEAD)
    label = "`enginehouse launch run --dry-run`, seconds"
    print(row(label, mean(found["dry run"]), at_most=_DRY_RUN_BUDGET))
    label = "`launch run` to the first answer of a local job, less `eval` to its first, seconds"
    print(row(label, mean(added), at_most=_LAUNCH_BUDGET))


def _write_files(folder: Path) -> Path:
    """A model, a task and a launch file."""
    (folder / "tiny").mkdir()
    for file, content in _MODEL.items():
        (folder / "tiny" / file).write_bytes(content)
    write_task(folder, items=4)
    values = {
        "defaults": [{"execution": "local"}, {"deployment": "vllm"}, "_self_"],
        "execution": {"output_dir": str(folder / "jobs")},
        "deployment": {
            "checkpoint_path": str(folder / "tiny"),
            "python": str(make_fake_environment(folder / "environment")),
            "tensor_parallel_size": 1,
        },
        "evaluation": {"tasks": [{"name": str(folder / "sums.yaml")}]},
    }
    path = folder / "launch.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def _dry_run(folder: Path, file: Path) -> float:
    began = time.perf_counter()
    words = ("launch", "run", "--config", str(file), "--dry-run")
    subprocess.run(_words(*words), check=True, capture_output=True, env=_env(folder))
    return time.perf_counter() - began


def _launch(folder: Path, file: Path) -> float:
    """Seconds from the command to the first answer; waits for the job's end."""
    known = set(folder.glob("jobs/*"))
    began = time.perf_counter()
    words = ("launch", "run", "--config", str(file))
    with _command(folder, *words):
        while not (new := set(folder.glob("jobs/*")) - known):
            _look(began)
        (job,) = new
        seconds = _first_answer(job / "run/journal.jsonl", began)
        while not (job / "end.json").exists():
            _look(began)
    return seconds


def _eval(folder: Path) -> float:
    """Seconds from `enginehouse eval` of a job's plan to the first answer."""
    plan = next(folder.glob("jobs/*/plan.yaml"))
    run = folder / f"run-{time.monotonic_ns()}"
    began = time.perf_counter()
    with _command(folder, "eval", "--config", str(plan), "--folder", str(run)):
        return _first_answer(run / "journal.jsonl", began)


def _first_answer(journal: Path, began: float) -> float:
    while not journal.exists() or b'"record":"sample"' not in journal.read_bytes():
        _look(began)
    return time.perf_counter() - began


def _look(began: float) -> None:
    if time.perf_counter() - began > _LONGEST:
        sys.exit(f"nothing was answered within {_LONGEST:.0f} s")
    time.sleep(_LOOK)


@contextmanager
def _command(folder: Path, *words: str) -> Iterator[None]:
    """The command runs in the block, and has ended well after it."""
    with (folder / "said.txt").open("wb") as said:
        process = subprocess.Popen(_words(*words), stdout=said, stderr=said, env=_env(folder))
    try:
        yield
    finally:
        code = process.wait()
    if code:
        sys.exit(f"enginehouse {words[0]} ended with {code}:\n{(folder / 'said.txt').read_text()}")


def _words(*words: str) -> list[str]:
    return [sys.executable, "-m", "enginehouse", *words]


def _env(folder: Path) -> dict[str, str]:
    return {**os.environ, "ENGINEHOUSE_HOME": str(folder / "home")}


if __name__ == "__main__":
    main(sys.argv[1:])
