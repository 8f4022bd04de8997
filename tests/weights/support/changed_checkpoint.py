"""A copy of a real checkpoint with one tensor changed, whatever its type, without torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np


def changed_checkpoint(source: Path, folder: Path, *, tensor: str, factor: float) -> Path:
    """`source` with a bfloat16 `tensor` of model.safetensors multiplied by `factor`."""
    shutil.copytree(source, folder)
    file = folder / "model.safetensors"
    file.chmod(0o600)
    with file.open("r+b") as opened:
        size = int.from_bytes(opened.read(8), "little")
        head = json.loads(opened.read(size))
        begin, end = head[tensor]["data_offsets"]
        assert head[tensor]["dtype"] == "BF16"
        opened.seek(8 + size + begin)
        bits = np.frombuffer(opened.read(end - begin), "<u2").astype(np.uint32) << 16
        changed = bits.view(np.float32) * np.float32(factor)
        opened.seek(8 + size + begin)
        opened.write((changed.view(np.uint32) >> 16).astype("<u2").tobytes())
    return folder
