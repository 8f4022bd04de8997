"""A vLLM with the plug-in of file_transfer.py, and what a trainer sends to it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors

from tests.support import SUPPORT
from tests.support.command_line import SMALL_VLLM


def transfer_settings(folder: Path) -> dict[str, Any]:
    """Settings of a server that finds the plug-in, which is installed in `folder`."""
    about = folder / "file_transfer-0.0.dist-info"
    about.mkdir(parents=True)
    shutil.copy(SUPPORT / "file_transfer.py", folder)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: file_transfer\nVersion: 0.0\n")
    (about / "entry_points.txt").write_text(
        "[vllm.general_plugins]\nfile_transfer = file_transfer:register\n"
    )
    return {
        "dtype": "float32",  # the same question has one answer, cached or not
        "env_vars": {**SMALL_VLLM, "PYTHONPATH": str(folder)},
        "extra_args": "--weight-transfer-config.backend file",
        "enable_weight_swap": True,
    }


def updates_of(checkpoint: Path) -> Iterator[dict[str, Any]]:
    """A checkpoint's tensors, in updates of 40."""
    file = checkpoint / "model.safetensors"
    with safetensors.safe_open(file, framework="numpy") as opened:
        names = list(opened.keys())
    for first in range(0, len(names), 40):
        yield {"file": str(file), "names": names[first : first + 40]}
