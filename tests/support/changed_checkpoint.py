"""Copies of a real bfloat16 checkpoint: with one tensor changed, or in float32; without torch."""

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


def as_float32(source: Path, folder: Path) -> Path:
    """`source` with the same values in float32, as a trainer saves its master weights."""
    shutil.copytree(source, folder)
    file = folder / "model.safetensors"
    file.unlink()
    with (source / file.name).open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        old = json.loads(opened.read(size))
        new = {"__metadata__": old.pop("__metadata__", {"format": "pt"})}
        ordered = sorted(old.items(), key=lambda item: item[1]["data_offsets"])
        for name, tensor in ordered:
            assert tensor["dtype"] == "BF16"
            ends = [2 * offset for offset in tensor["data_offsets"]]
            new[name] = tensor | {"dtype": "F32", "data_offsets": ends}
        head = json.dumps(new).encode()
        with file.open("wb") as written:
            written.write(len(head).to_bytes(8, "little") + head)
            for _, tensor in ordered:
                begin, end = tensor["data_offsets"]
                opened.seek(8 + size + begin)
                bits = np.frombuffer(opened.read(end - begin), "<u2").astype("<u4") << 16
                written.write(bits.tobytes())
    config = json.loads((folder / "config.json").read_bytes())
    named = "dtype" if "dtype" in config else "torch_dtype"
    (folder / "config.json").chmod(0o600)
    (folder / "config.json").write_text(json.dumps(config | {named: "float32"}))
    return folder
