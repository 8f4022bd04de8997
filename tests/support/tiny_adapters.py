"""LoRA adapters of a few hundred bytes, right or wrong in one respect, and their base's shapes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

LAYERS = (0, 1)
BASE: Mapping[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (32, 8),
    **{f"model.layers.{layer}.self_attn.q_proj.weight": (8, 8) for layer in LAYERS},
    **{f"model.layers.{layer}.self_attn.q_proj.bias": (8,) for layer in LAYERS},
    **{f"model.layers.{layer}.self_attn.v_proj.weight": (4, 8) for layer in LAYERS},
    **{f"model.layers.{layer}.input_layernorm.weight": (8,) for layer in LAYERS},
    "model.norm.weight": (8,),
}
Tensors = dict[str, np.ndarray[Any, Any]]
Stored = tuple[str, tuple[int, ...], bytes]  # type, shape and values


def tensors(*, rank: int = 4, seed: int = 0, prefix: str = "base_model.model.") -> Tensors:
    """A and B of both projections in both layers, as PEFT names them."""
    rng = np.random.default_rng(seed)
    made: Tensors = {}
    for layer in LAYERS:
        for name, outputs in (("q_proj", 8), ("v_proj", 4)):
            module = f"{prefix}model.layers.{layer}.self_attn.{name}"
            made[f"{module}.lora_A.weight"] = rng.normal(size=(rank, 8)).astype("<f4")
            made[f"{module}.lora_B.weight"] = rng.normal(size=(outputs, rank)).astype("<f4")
    return made


def write_adapter(
    folder: Path,
    *,
    rank: int = 4,
    seed: int = 0,
    change: Callable[[Tensors], Any] = lambda _: None,
    bfloat16: bool = False,
    prefix: str = "base_model.model.",
    **config: Any,
) -> Path:
    """Write an adapter for BASE; `change` alters its tensors, `config` its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    made = tensors(rank=rank, seed=seed, prefix=prefix)
    change(made)
    fields = {
        "peft_type": "LORA",
        "base_model_name_or_path": "org/tiny",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ["q_proj", "v_proj"],
        "init_lora_weights": True,
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(fields | config), encoding="utf-8")
    write_tensors(
        folder / "adapter_model.safetensors",
        {name: _stored(values, bfloat16=bfloat16) for name, values in made.items()},
    )
    return folder


def write_tensors(path: Path, stored: Mapping[str, Stored]) -> None:
    """Write a safetensors file: the length of the head, the head, and the values in a row."""
    head, begin = {}, 0
    for name, (dtype, shape, data) in stored.items():
        offsets = [begin, begin + len(data)]
        head[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        begin += len(data)
    text = json.dumps(head).encode()
    values = b"".join(data for _, _, data in stored.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + values)


def _stored(values: np.ndarray[Any, Any], *, bfloat16: bool) -> Stored:
    if not bfloat16:
        return "F32", values.shape, values.tobytes()
    return "BF16", values.shape, (values.view("<u4") >> 16).astype("<u2").tobytes()
