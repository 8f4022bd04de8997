"""An adapter's folder: a PEFT adapter, and what is needed to train it further. No pickle.

- adapter_config.json, adapter_model.safetensors: as PEFT and vLLM read them
- training.json: the LoraSpec, and how many steps were taken
- optimizer.safetensors, with state: Adam's moments and the gradients that were not applied yet,
  under the weights' names behind `mean.`, `square.` and `gradient.`
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from trainer.adapter import Adapter, named
from trainer.data import LoraSpec
from trainer.errors import RequestError

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TRAINING, _OPTIMIZER = "training.json", "optimizer.safetensors"
_VERSION = 1


def write_folder(folder: Path, adapter: Adapter, *, config: Mapping[str, Any], state: bool) -> None:
    """Write a new folder, all at once or not at all. `config` is that of adapter_config.json.

    Raises FileExistsError if there is one, and OSError, for instance when the disk is full.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists already")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    partial.mkdir()
    try:
        _write_json(partial / _CONFIG, config)
        _write_tensors(partial / _WEIGHTS, dict(named(adapter.views(adapter.weights))))
        has_optimizer = state and adapter.moments is not None
        has_gradient = state and adapter.gradient is not None
        about = {
            "version": _VERSION,
            "spec": asdict(adapter.spec),
            "state": state,
            "steps": adapter.steps if state else 0,
            "optimizer": has_optimizer,
            "gradient": has_gradient,
        }
        _write_json(partial / _TRAINING, about)
        if state:
            parts: dict[str, Tensor] = {}
            if adapter.moments is not None:
                parts |= {"mean": adapter.moments[0], "square": adapter.moments[1]}
            if adapter.gradient is not None:
                parts["gradient"] = adapter.gradient
            _write_tensors(
                partial / _OPTIMIZER,
                {
                    f"{part}.{name}": tensor
                    for part, flat in parts.items()
                    for name, tensor in named(adapter.views(flat))
                },
            )
        _sync(partial)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync(folder.parent)


def read_folder(
    folder: Path,
    *,
    make: Callable[[LoraSpec], Adapter],
    optimizer: bool,
    gradients: bool,
) -> Adapter:
    """The adapter that `write_folder` wrote, equal to the last bit. Raises RequestError.

    `make` gives an adapter of a spec whose numbers do not matter.
    """
    try:
        about = json.loads((folder / _TRAINING).read_bytes())
        if about["version"] != _VERSION:
            raise RequestError(
                f"the checkpoint {folder.name} was written by another version of the trainer "
                f"(format {about['version']}; this one reads {_VERSION})"
            )
        adapter = make(LoraSpec(**about["spec"]))
        _fill(adapter, adapter.weights, folder / _WEIGHTS, prefix="")
        if optimizer and not about["state"]:
            raise RequestError(
                f"the checkpoint {folder.name} has no optimizer state: load it without, or load "
                "one that save_state wrote"
            )
        if optimizer:
            adapter.steps = about["steps"]
            if about["optimizer"]:
                mean, square = (torch.empty_like(adapter.weights) for _ in range(2))
                _fill(adapter, mean, folder / _OPTIMIZER, prefix="mean.")
                _fill(adapter, square, folder / _OPTIMIZER, prefix="square.")
                adapter.moments = (mean, square)
        if gradients and about["gradient"]:
            adapter.gradient = torch.empty_like(adapter.weights)
            _fill(adapter, adapter.gradient, folder / _OPTIMIZER, prefix="gradient.")
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise RequestError(
            f"the checkpoint {folder.name} cannot be loaded: {error}; only checkpoints that this "
            "service saved for this base model can"
        ) from error
    return adapter


def _fill(adapter: Adapter, flat: Tensor, file: Path, *, prefix: str) -> None:
    with safe_open(file, framework="pt") as opened:
        wanted = {f"{prefix}{name}": view for name, view in named(adapter.views(flat))}
        stored = {name for name in opened.keys() if name.startswith(prefix)}  # noqa: SIM118 (not a dict)
        if stored != wanted.keys():
            raise ValueError(f"{file.name} has other modules than this model's adapter")
        for name, view in wanted.items():
            tensor = opened.get_tensor(name)
            if tensor.shape != view.shape:
                raise ValueError(f"{name} is {list(tensor.shape)}, not {list(view.shape)}")
            view.copy_(tensor)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    try:
        save_file(arrays, path, metadata={"format": "pt"})
    except SafetensorError as error:  # its word for OSError
        raise OSError(f"{path} cannot be written: {error}") from error
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
