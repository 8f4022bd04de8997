"""The hf server's inner parts, in the environment that it runs in (support/hf_…checks.py)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from tests.support import SUPPORT

from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.programs import PAYLOADS

pytestmark = pytest.mark.engine


@pytest.fixture
def python(hf_environment: EngineEnvironment) -> Path:
    """The interpreter of our hf environment."""
    return hf_environment.executable


@pytest.mark.parametrize("program", ["hf_checks.py", "hf_service_checks.py"])
def test_every_check_passes(python: Path, program: str):
    """Their names and docstrings are the promises; each runs on tiny models with random weights."""
    done = subprocess.run(
        [python, SUPPORT / program],
        env=os.environ | {"PYTHONPATH": str(PAYLOADS)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) > 8
    assert {name: problem for name, problem in found.items() if problem} == {}


def test_the_description_has_the_versions_and_every_flag(python: Path):
    """What provisioning verifies; told what it said last time, it leaves the flags out."""

    def describe(*known: str) -> dict[str, object]:
        done = subprocess.run(
            [python, PAYLOADS / "describe_hf.py", *known],
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(done.stdout.splitlines()[-1])

    found = describe()
    assert found["variant"] == "cpu"
    assert found["version"] == found["packages"]["transformers"]
    assert {"torch", "peft", "xgrammar", "gguf", "accelerate"} <= found["packages"].keys()
    assert found["flags"]["--max-model-len"] == {"takes_value": True}
    assert found["flags"]["--enable-lora"] == {"takes_value": False}
    assert describe(found["identity"]) == found | {"flags": None}
