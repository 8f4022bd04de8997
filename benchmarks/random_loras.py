"""LoRA adapters with random values, for a checkpoint; a few megabytes each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK = 8


def write_lora(folder: Path, checkpoint: Path, *, seed: int) -> Path:
    """An adapter over all seven projections, whose effect is above rounding."""
    rng, tensors = np.random.default_rng(seed), {}
    for file in checkpoint.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a mapping)
                if name.split(".")[-2] in _TARGETS:
                    outputs, inputs = opened.get_slice(name).get_shape()
                    module = f"base_model.model.{name.removesuffix('.weight')}"
                    a = rng.normal(size=(RANK, inputs)) / np.sqrt(inputs)
                    b = rng.normal(size=(outputs, RANK)) * 0.01
                    tensors[f"{module}.lora_A.weight"] = a.astype(np.float32)
                    tensors[f"{module}.lora_B.weight"] = b.astype(np.float32)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": list(_TARGETS),
        "base_model_name_or_path": str(checkpoint),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
