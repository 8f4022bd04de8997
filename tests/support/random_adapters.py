"""LoRA adapters with random weights for a real checkpoint, strong enough to change its answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from enginehouse.weights.peft_folder import checkpoint_shapes
from tests.support.tiny_adapters import write_tensors

_PROJECTIONS = ("q_proj", "v_proj")


def write_random_adapter(folder: Path, *, checkpoint: Path, seed: int, rank: int = 8) -> Path:
    """An adapter of every layer's query and value projection; overwrites what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in checkpoint_shapes(checkpoint).items():
        module = name.removesuffix(".weight")
        if not name.endswith(".weight") or not module.endswith(_PROJECTIONS):
            continue
        outputs, inputs = shape
        for part, size in (("lora_A", (rank, inputs)), ("lora_B", (outputs, rank))):
            values = rng.normal(scale=0.1, size=size).astype("<f4")
            tensors[f"base_model.model.{module}.{part}.weight"] = ("F32", size, values.tobytes())
    fields = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(checkpoint),
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(_PROJECTIONS),
        "init_lora_weights": True,
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(fields), encoding="utf-8")
    write_tensors(folder / "adapter_model.safetensors", tensors)
    return folder
