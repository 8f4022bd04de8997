"""The trainer's mathematics, in the environment that it runs in (support/trainer_…checks.py)."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from tests.support import SUPPORT

from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.programs import PAYLOADS

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("program", ["trainer_checks.py", "trainer_state_checks.py"])
def test_every_check_passes(hf_environment: EngineEnvironment, program: str):
    """Their names and docstrings are the promises; each runs on tiny models with random weights."""
    done = subprocess.run(
        [hf_environment.executable, SUPPORT / program],
        env=os.environ | {"PYTHONPATH": str(PAYLOADS)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) > 6
    assert {name: problem for name, problem in found.items() if problem} == {}
