"""With a real torch, and with a real vLLM.

The trainer's environment is made as its user makes it: this package with its extra [trainer],
beside the transformers and PEFT that the hf engine is pinned to (so that the wheels are at hand).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support import SUPPORT
from tests.support.command_line import House, SharedServer

from enginehouse.engines.hf.installation import INSTALLATION as HF
from enginehouse.evaluation.records import Record, SampleRecord
from enginehouse.processes.gpus import read_gpus
from enginehouse.provisioning.models import ResolvedModel
from enginehouse.provisioning.plans import plan_environment
from enginehouse.store.journal import read_journal

pytestmark = pytest.mark.engine
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a trainer's environment: seconds from uv's cache."""
    return environment(tmp_path_factory.mktemp("trainer"), variant="cpu")


def environment(folder: Path, *, variant: str) -> Path:
    """Make it; returns its Python."""
    plan = plan_environment(HF, version=None, variant=variant)
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
def machine(real_house: House) -> House:
    """Environments and models are the user's caches; this package is the trainer's own."""
    del real_house.env["PYTHONPATH"]
    return real_house


def test_every_check_passes(trainer: Path):
    """Their names and docstrings are the promises; each runs on tiny models with random weights."""
    check(trainer, "cpu")


@pytest.mark.gpu
def test_every_check_passes_on_a_gpu(tmp_path: Path):
    """The same with memory that is really freed; until then docs/training.md says "unverified"."""
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

    def __init__(self, python: Path, machine: House, checkpoint: str) -> None:
        self.python = python
        self.machine = machine
        self.checkpoint = checkpoint
        self._plain: dict[str, dict[str, Any]] = {}

    def plain(self, kind: str) -> dict[str, Any]:
        """What it ends with when it never evaluates; it runs once."""
        if kind not in self._plain:
            self._plain[kind], evaluations = self.run(kind, None)
            assert evaluations == []
        return self._plain[kind]

    def run(
        self, kind: str, settings: object, **env: str
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What it ends with, and its evaluations."""
        words = [self.python, SUPPORT / "real_loop.py", self.checkpoint, self.machine.work / kind]
        given = [json.dumps(settings), kind]
        done = self.machine.start_program([*map(str, words), *given], **env).end()
        assert done.code == 0, done.err
        ended: dict[str, Any] = json.loads(done.out.splitlines()[-1])
        return ended, ended.pop("evaluations")


@pytest.fixture(scope="module")
def loops(trainer: Path, machine: House, smollm2: ResolvedModel) -> Loops:
    """Of the trainer's environment."""
    return Loops(trainer, machine, str(smollm2.path))


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
    """Two steps, each evaluated by a vLLM of its own: same weights, moments, losses, draws."""
    evaluated, found = loops.run("lora", SETTINGS | {"server": {"max_model_len": 512}})
    assert evaluated == loops.plain("lora")
    assert [evaluation["step"] for evaluation in found] == [1, 2]
    assert len({provenance(evaluation)["weights_digest"] for evaluation in found}) == 2


def same_user(server: SharedServer) -> dict[str, str]:
    """What makes a process find the server's records and use its key, as its user's own do."""
    return {
        "ENGINEHOUSE_HOME": str(server.house.home),
        "ENGINEHOUSE_API_KEY": server.admin_key,
    }


def test_on_a_vllm_that_runs_already(loops: Loops, lora_vllm: SharedServer):
    """It takes in each step's adapter, or each step's weights, and has its own again after that."""

    def weights() -> dict[str, Any]:
        return dict(lora_vllm.house.run("weights", "info", lora_vllm.name, "--json").report)

    known = weights()["version"]
    for kind in ("lora", "full"):
        evaluated, found = loops.run(
            kind, SETTINGS | {"url": lora_vllm.url}, **same_user(lora_vllm)
        )
        assert evaluated == loops.plain(kind)
        assert len({provenance(evaluation)["model"] for evaluation in found}) == 2
        assert len({answers(evaluation) for evaluation in found}) > 1
    info = weights()
    assert Path(info["path"]).resolve() == Path(loops.checkpoint).resolve()
    assert info["agrees"]
    assert info["version"] == known + 4


def test_tink(loops: Loops, machine: House, lora_vllm: SharedServer):
    """A worker of Tink's registers an adapter, updates all weights, and puts the old ones back."""
    program = [loops.python, SUPPORT / "tink_loop.py", loops.checkpoint, lora_vllm.url]
    program = [*map(str, program), str(machine.work)]
    done = machine.start_program(program, **same_user(lora_vllm)).end()
    assert done.code == 0, done.err
    found = json.loads(done.out.splitlines()[-1])
    answers = {tuple(found[name]) for name in ("base", "adapted", "updated")}
    assert len(answers) == 3
    assert (found["listed"], found["unregistered"]) == (["mine"], True)
    assert found["back"] == found["base"]
    assert all(one in (found["base"], found["updated"]) for one in found["meanwhile"])
    assert (found["info"]["available"], found["info"]["active_loras"]) == (True, 0)
