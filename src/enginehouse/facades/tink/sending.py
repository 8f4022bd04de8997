"""The weights of a model in training, written so that the served ones can be swapped for them."""

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
    """Save `model` to `folder`, whole or not at all, each tensor in the type that it is served in.

    A PEFT model is saved merged; the model itself stays as it is. Blocks; takes as much memory of
    the host as the weights. Raises ModelError for what cannot be saved, StoreError, and what saving
    raises.
    """
    if not (hasattr(model, "save_pretrained") and hasattr(model, "state_dict")):
        raise ModelError(
            f"a {type(model).__name__} cannot be saved as a checkpoint",
            why="it has no save_pretrained",
            fix="hand over the transformers model itself, not what wraps it",
        )
    types = {name: tensor.dtype for name, tensor in tensors_of(read_checkpoint(served)).items()}
    plain = merged(model) if is_adapted(model) else model

    def write(unfinished: Path) -> None:
        plain.save_pretrained(unfinished, state_dict=_cast(plain.state_dict(), types))

    save_whole(write, folder=folder)


def _cast(state: Mapping[str, Any], types: Mapping[str, str]) -> dict[str, Any]:
    """On the host; what is tied stays tied, so that it is saved once."""
    copies: dict[Any, Any] = {}
    cast: dict[str, Any] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.dtype)
        if key not in copies:
            copies[key] = _in_type(tensor.detach().to("cpu"), types.get(name))
        cast[name] = copies[key]
    return cast


def _in_type(tensor: Any, wanted: str | None) -> Any:
    if wanted not in _CASTS or not tensor.is_floating_point():
        return tensor
    return getattr(tensor, _CASTS[wanted])()
