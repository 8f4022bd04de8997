"""Saving the weights of a model in training as a checkpoint that can be swapped in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enginehouse.core.errors import ModelError
from enginehouse.provisioning.checkpoints import read_checkpoint
from enginehouse.training.saving import is_adapted, merged, save_whole
from enginehouse.weights.checkpoint import tensors_of

_CASTS = {"BF16": "bfloat16", "F16": "half", "F32": "float", "F64": "double"}


def save_like(model: Any, served: Path, *, folder: Path) -> None:
    """Save `model` to `folder`, completely or not at all, each tensor in its served type.

    A PEFT model is saved merged; the model itself does not change. Blocks; takes as much host
    memory as the weights. Raises ModelError for a model that cannot be saved, StoreError, and what
    saving raises.
    """
    if not (hasattr(model, "save_pretrained") and hasattr(model, "state_dict")):
        raise ModelError(
            f"a {type(model).__name__} cannot be saved as a checkpoint",
            why="it has no save_pretrained",
            fix="pass the transformers model itself, not a wrapper",
        )
    types = {name: tensor.dtype for name, tensor in tensors_of(read_checkpoint(served)).items()}
    plain = merged(model) if is_adapted(model) else model

    def write(unfinished: Path) -> None:
        plain.save_pretrained(unfinished, state_dict=_cast(plain.state_dict(), types))

    save_whole(write, folder=folder)


def _cast(state: Mapping[str, Any], types: Mapping[str, str]) -> dict[str, Any]:
    """Copies on the host. Tied tensors stay tied, so that they are saved once."""
    copies: dict[Any, Any] = {}
    cast: dict[str, Any] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.dtype)
        if key not in copies:
            copy, wanted = tensor.detach().to("cpu"), types.get(name)
            if wanted in _CASTS and copy.is_floating_point():
                copy = getattr(copy, _CASTS[wanted])()
            copies[key] = copy
        cast[name] = copies[key]
    return cast
