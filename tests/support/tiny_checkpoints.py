"""Checkpoints of a few numbers, whole and wrong ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

SHAPES = {"model.embed_tokens.weight": (8, 4), "model.norm.weight": (4,)}


def write_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    shapes: dict[str, tuple[int, ...]] | None = None,
    dtype: str = "float32",
    last: float | None = None,
    **config: Any,
) -> Path:
    """A checkpoint whose values come from `seed`, but for the `last`; overwrites what is there."""
    folder.mkdir(exist_ok=True)
    made = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_theta": 10000}
    (folder / "config.json").write_text(json.dumps(made | config))
    (folder / "tokenizer.json").write_text("{}")
    rng = np.random.default_rng(seed)
    tensors = {n: rng.normal(size=s).astype(dtype) for n, s in (shapes or SHAPES).items()}
    if last is not None:
        tensors["model.norm.weight"][-1] = last
    save_file(tensors, folder / "model.safetensors")
    return folder
