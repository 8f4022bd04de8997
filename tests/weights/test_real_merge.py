"""The trainer on SmolLM2, and its adapter merged: with PEFT as the reference of both."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors import deserialize
from tests.support import SUPPORT

from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.models import ResolvedModel
from enginehouse.provisioning.programs import PAYLOADS
from enginehouse.weights.merge import merge

pytestmark = pytest.mark.engine
TOKENS = [[1, 504, 3575, 282, 4649, 314, 7042, 30, 2], list(range(100, 140))]


def run(hf: EngineEnvironment, *words: object) -> dict[str, object]:
    """What a program says on its last line."""
    done = subprocess.run(
        [hf.executable, *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(PAYLOADS)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def stored(folder: Path) -> dict[str, dict[str, object]]:
    """Type and bytes of each tensor, as they are stored: numpy has no bfloat16."""
    return dict(deserialize((folder / "model.safetensors").read_bytes()))


def test_trained_and_merged(
    smollm2: ResolvedModel, hf_environment: EngineEnvironment, tmp_path: Path
):
    """Its steps equal PEFT's; merged, the adapter has the log-probabilities that PEFT gives it.

    It changes the output layer, which shares the embedding's weights before and not after.
    """
    adapter, out = tmp_path / "adapter", tmp_path / "merged"
    program = SUPPORT / "trainer_real_checks.py"
    found = run(hf_environment, program, smollm2.path, adapter)
    assert len(found) == 3
    assert {name: problem for name, problem in found.items() if problem} == {}

    merged = merge(Path(smollm2.path), adapter, out)
    assert (merged.modules, merged.untied) == (30 * 7 + 1, True)
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps(TOKENS))

    def logprobs(model: object, *words: object) -> np.ndarray:
        program = PAYLOADS / "reference_logprobs.py"
        said = run(hf_environment, program, model, tokens, "float32", "cpu", *words)
        return np.concatenate(said["logprobs"])

    wanted, base = logprobs(smollm2.path, adapter), logprobs(smollm2.path)
    assert np.abs(wanted - base).max() > 0.1
    np.testing.assert_allclose(logprobs(out), wanted, atol=1e-4, rtol=0)
    before, after = stored(Path(smollm2.path)), stored(out)
    assert after["lm_head.weight"]["dtype"] == "F32"
    name = "model.embed_tokens.weight"
    assert after[name]["data"] == before[name]["data"]
