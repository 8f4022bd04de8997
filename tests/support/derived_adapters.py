"""Adapters made of a trained one: right ones that differ, and ones that are wrong somewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.support.tiny_adapters import Stored, Tensors, write_tensors

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"


def read_tensors(path: Path) -> Tensors:
    """The tensors of a safetensors file of bfloat16 or float32, as float32."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    head = json.loads(data[8:start])
    head.pop("__metadata__", None)
    made: Tensors = {}
    for name, entry in head.items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        if entry["dtype"] == "BF16":
            halves = np.frombuffer(data[begin:end], "<u2").astype("<u4")
            values = (halves << 16).view("<f4")
        else:
            assert entry["dtype"] == "F32"
            values = np.frombuffer(data[begin:end], "<f4").copy()
        made[name] = values.reshape(entry["shape"])
    return made


def derive(
    source: Path,
    folder: Path,
    change: Callable[[Tensors], object],
    **config: object,
) -> Path:
    """Write `source` with other tensors (in bfloat16) and other fields of its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    made = read_tensors(source / TENSORS)
    change(made)
    fields = json.loads((source / CONFIG).read_text(encoding="utf-8")) | config
    (folder / CONFIG).write_text(json.dumps(fields), encoding="utf-8")
    write_tensors(folder / TENSORS, {name: _halves(values) for name, values in made.items()})
    return folder


def scaled(source: Path, folder: Path, factor: float) -> Path:
    """Write it with every B times `factor`."""

    def scale(made: Tensors) -> None:
        for name in made:
            if "lora_B" in name:
                made[name] = made[name] * factor

    return derive(source, folder, scale)


def variant(source: Path, folder: Path, seed: int) -> Path:
    """Write one of many: every B times a factor of its own, and with noise as large as itself."""
    rng = np.random.default_rng(seed)

    def shake(made: Tensors) -> None:
        for name, values in made.items():
            if "lora_B" in name:
                noise = rng.normal(scale=values.std(), size=values.shape)
                made[name] = values * rng.normal() + noise

    return derive(source, folder, shake)


def pickled(source: Path, folder: Path) -> Path:
    """Write it as older versions of PEFT did."""
    shutil.copytree(source, folder)
    (folder / TENSORS).rename(folder / "adapter_model.bin")
    return folder


def _halves(values: np.ndarray) -> Stored:
    bits = np.ascontiguousarray(values, "<f4").view("<u4") >> 16
    return "BF16", values.shape, bits.astype("<u2").tobytes()
