"""`enginehouse parity` on the real vLLM, against transformers and PEFT."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from tests.support.command_line import House

from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.models import ResolvedModel

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def checkpoint(smollm2: ResolvedModel, hf_environment: EngineEnvironment) -> Path:
    """SmolLM2, and the environment of the reference."""
    del hf_environment
    return Path(smollm2.path)


def write_random_lora(folder: Path, checkpoint: Path) -> Path:
    """An adapter for the checkpoint, whose effect is far above rounding."""
    rng, tensors = np.random.default_rng(0), {}
    with safe_open(checkpoint / "model.safetensors", framework="numpy") as opened:
        for name in opened.keys():  # noqa: SIM118 (not a mapping)
            if "self_attn.q_proj" in name or "self_attn.v_proj" in name:
                outputs, inputs = opened.get_slice(name).get_shape()
                module = f"base_model.model.{name.removesuffix('.weight')}"
                a = rng.normal(size=(8, inputs)) / np.sqrt(inputs)
                tensors[f"{module}.lora_A.weight"] = a.astype(np.float32)
                b = rng.normal(size=(outputs, 8)) * 0.05
                tensors[f"{module}.lora_B.weight"] = b.astype(np.float32)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "v_proj"],
        "base_model_name_or_path": str(checkpoint),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_an_adapter_s_values_are_peft_s(house: House, checkpoint: Path):
    """In float32 to within rounding; where more is asked than that, the verdict is no."""
    adapter = write_random_lora(house.work / "lora", checkpoint)
    words = ("parity", f"{checkpoint}+{adapter}", "--dtype", "float32", "--json")
    done = house.run(*words, "--threshold", "1e-9")
    assert done.code == 4, done.err
    found = done.report["parity"]
    assert found["tokens"] > 300
    assert 1e-9 < found["mean"] < 1e-3
    assert found["largest"] < 0.05
    assert found["clipped"] == 0
    house.nothing_left()
