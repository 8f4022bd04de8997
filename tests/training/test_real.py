"""With a real torch, and with a real vLLM.

The trainer's environment is made as its user makes it: this package with its extra [trainer],
beside the transformers and PEFT that the hf engine is pinned to (so that the wheels are at hand).
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import command_line
import pytest
from command_line import House

from enginehouse.evaluation.records import Record, SampleRecord
from enginehouse.executors.gpus import read_gpus
from enginehouse.provisioning.plans import plan_environment
from enginehouse.store.journal import read_journal
from enginehouse.store.layout import Layout

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
SUPPORT = Path(__file__).with_name("support")
_NOT_OURS = ("ENGINEHOUSE_", "GRAIL_", "VLLM_", "HF_")


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a trainer's environment: seconds from uv's cache."""
    return environment(tmp_path_factory.mktemp("trainer"), variant="cpu")


def environment(folder: Path, *, variant: str) -> Path:
    """Make it; returns its Python."""
    plan = plan_environment("hf", version=None, variant=variant)
    pins = folder / "pins.txt"
    pins.write_text(plan.requirements)
    links = {"UV_FIND_LINKS": plan.find_links} if plan.find_links else {}
    backend = {"UV_TORCH_BACKEND": plan.torch_backend} if plan.torch_backend else {}
    python = folder / "venv" / "bin" / "python"
    for words in (
        ["venv", "--python", sys.executable, folder / "venv"],
        ["pip", "install", "--python", python, "-r", pins, "-e", f"{ROOT}[trainer]"],
    ):
        program = [sys.executable, "-m", "uv", *map(str, words)]
        subprocess.run(program, check=True, env=os.environ | links | backend)
    return python


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Environments and models are the user's caches; runs and servers are this test's own."""
    cache = Layout.from_environment().cache
    cache.mkdir(parents=True, exist_ok=True)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_OURS)}
    house = House(tmp_path_factory.mktemp("machine"), python=None, env=inherited)
    house.env["ENGINEHOUSE_HOME"] = str(house.home)
    house.home.mkdir()
    (house.home / "cache").symlink_to(cache, target_is_directory=True)
    del house.env["PYTHONPATH"]
    command_line.DEADLINE, command_line.POLL = 1500.0, 0.1
    try:
        yield house
        house.nothing_left()
    finally:
        command_line.DEADLINE, command_line.POLL = 60.0, 0.01
        house.clear()


def test_every_check_passes(trainer: Path):
    """Their names and docstrings are the promises; each runs on tiny models with random weights."""
    check(trainer, "cpu")


@pytest.mark.gpu
def test_every_check_passes_on_a_gpu(tmp_path: Path):
    """The same with memory that is really freed; until then docs/training.md says «unverified»."""
    if not read_gpus():
        pytest.skip("there is no GPU")
    check(environment(tmp_path, variant="cuda"), "cuda")


def check(python: Path, device: str) -> None:
    """Run the checks and see that each has passed."""
    done = subprocess.run(
        [python, SUPPORT / "training_checks.py", device],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 6
    assert {name: problem for name, problem in found.items() if problem} == {}, done.stderr[-4000:]


SETTINGS = {"tasks": ["instructions"], "limit": 3, "max_tokens": 16}


class Loops:
    """Runs support/real_loop.py on SmolLM2."""

    def __init__(self, python: Path, machine: House) -> None:
        self.python = python
        self.machine = machine
        self.checkpoint = asyncio.run(_smollm2())

    def run(self, kind: str, settings: object) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What it ends with, and its evaluations."""
        words = [self.python, SUPPORT / "real_loop.py", self.checkpoint, self.machine.work / kind]
        given = [json.dumps(settings), kind]
        done = self.machine.start_program([*map(str, words), *given]).end()
        assert done.code == 0, done.err
        ended: dict[str, Any] = json.loads(done.out.splitlines()[-1])
        return ended, ended.pop("evaluations")


@pytest.fixture(scope="module")
def loops(trainer: Path, machine: House) -> Loops:
    """Of the trainer's environment."""
    return Loops(trainer, machine)


def provenance(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Who answered, of a complete run with a headline."""
    assert evaluation["error"] is None
    assert evaluation["scores"][0]["headline"] is not None
    assert evaluation["moved_bytes"] == 0
    report = json.loads((Path(evaluation["run"]) / "report.json").read_text())
    assert report["complete"]
    (answered,) = report["provenance"]
    assert answered["engine"] == "vllm"
    return dict(answered)


def answers(evaluation: dict[str, Any]) -> tuple[str, ...]:
    """What the model said, greedily."""
    entries = read_journal(Path(evaluation["run"]) / "journal.jsonl", Record)
    records = (entry.record for entry in entries)
    return tuple(
        response.completions[0].text
        for record in records
        if isinstance(record, SampleRecord)
        for response in record.responses
    )


def test_a_loop_that_evaluates_on_vllm_ends_like_one_that_does_not(loops: Loops):
    """Three steps, each evaluated by a vLLM of its own: same weights, moments, losses, draws."""
    plain, none = loops.run("lora", None)
    evaluated, found = loops.run("lora", SETTINGS | {"server": {"max_model_len": 512}})
    assert none == []
    assert evaluated == plain
    assert [evaluation["step"] for evaluation in found] == [1, 2, 3]
    assert len({provenance(evaluation)["weights_digest"] for evaluation in found}) == 3


def test_on_a_vllm_that_runs_already(loops: Loops, machine: House):
    """It takes in each step's adapter, or each step's weights, and has its own again after that."""
    with resident(machine, loops.checkpoint) as url:
        for kind in ("lora", "full"):
            plain, _ = loops.run(kind, None)
            evaluated, found = loops.run(kind, SETTINGS | {"url": url})
            assert evaluated == plain
            assert len({provenance(evaluation)["model"] for evaluation in found}) == 3
            assert len({answers(evaluation) for evaluation in found}) > 1
        info = machine.run("weights", "info", "resident", "--json").report
        assert (info["path"], info["agrees"]) == (loops.checkpoint, True)
        assert info["version"] == 6


def test_tink(loops: Loops, machine: House):
    """A worker of Tink's registers an adapter, updates all weights, and puts the old ones back."""
    with resident(machine, loops.checkpoint) as url:
        program = [loops.python, SUPPORT / "tink_loop.py", loops.checkpoint, url, machine.work]
        done = machine.start_program([*map(str, program)]).end()
        assert done.code == 0, done.err
        found = json.loads(done.out.splitlines()[-1])
    answers = {tuple(found[name]) for name in ("base", "adapted", "updated")}
    assert len(answers) == 3
    assert (found["listed"], found["unregistered"]) == (["mine"], True)
    assert found["back"] == found["base"]
    assert all(one in (found["base"], found["updated"]) for one in found["meanwhile"])
    assert (found["info"]["available"], found["info"]["active_loras"]) == (True, 0)


@contextmanager
def resident(machine: House, checkpoint: str) -> Iterator[str]:
    """The address of a vLLM that takes adapters and weights, stopped at the end."""
    begun = machine.run(
        *("serve", checkpoint, "--detach", "--name", "resident"),
        *("--enable-lora", "--enable-weight-swap", "--max-model-len", "512"),
    )
    assert begun.code == 0, begun.err
    try:
        (server,) = machine.run("ps", "--json").report
        yield server["record"]["base_url"]
    finally:
        assert machine.run("stop", "resident").code == 0


async def _smollm2() -> str:
    """The checkpoint's folder, made on first use."""
    from enginehouse.provisioning.environments import find_environment
    from enginehouse.provisioning.models import resolve_model

    layout = Layout.from_environment()
    environment = await find_environment(
        "vllm", python=None, version=None, variant="cpu", layout=layout, notify=print
    )
    model = await resolve_model(
        "smollm2",
        fallback_path=None,
        environment=environment,
        model_format="checkpoint",
        layout=layout,
        notify=print,
    )
    return str(model.path)
