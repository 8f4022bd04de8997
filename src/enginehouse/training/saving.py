"""Saves checkpoints and adapters of a model in training, completely or not at all. Blocking."""

from __future__ import annotations

import copy
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from enginehouse.core.errors import ModelError, StoreError

_QUANTIZED = {"Params4bit", "Int8Params"}  # bitsandbytes


def is_adapted(model: Any) -> bool:
    """Whether it is a PEFT model: a base model with adapters."""
    return hasattr(model, "peft_config") and hasattr(model, "merge_and_unload")


def save_checkpoint(model: Any, *, tokenizer: Any, folder: Path) -> None:
    """Save full weights and tokenizer, as transformers does; those of a PEFT model merged.

    PEFT merges a copy in the host's memory, so the model in training does not change by a bit.
    Replaces `folder`. Raises StoreError, ModelError, and what saving raises.
    """
    if tokenizer is None:
        raise ModelError(
            "no engine can serve a checkpoint without its tokenizer",
            fix="pass the tokenizer with the model",
        )
    plain = merged(model) if is_adapted(model) else model

    def write(unfinished: Path) -> None:
        plain.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)

    save_whole(write, folder=folder)


def save_adapter(model: Any, *, folder: Path) -> None:
    """Save the adapter of a PEFT model, as PEFT does. Replaces `folder`; raises alike."""
    save_whole(model.save_pretrained, folder=folder)


def save_whole(write: Callable[[Path], None], *, folder: Path) -> None:
    """Replace `folder` by what `write` puts into the folder that it is given.

    Everything is on the disk (fsync) before the folder gets its name, and only then is its
    predecessor removed. Raises StoreError, and what `write` raises; either keeps the predecessor.
    """
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(2)}")
    try:
        unfinished.mkdir(parents=True)
        write(unfinished)
        for path in sorted(unfinished.rglob("*"), reverse=True):
            _sync(path)
        _sync(unfinished)
        _take_the_name(unfinished, folder)
    except OSError as error:
        raise StoreError(
            f"cannot save {folder}",
            why=str(error),
            fix="free some space, check the permissions, or name another folder",
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _take_the_name(unfinished: Path, folder: Path) -> None:
    old = folder.with_name(f"{unfinished.name}-old")
    if folder.exists():  # a folder that is not empty cannot be replaced by a rename
        folder.rename(old)
    try:
        unfinished.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def merged(model: Any) -> Any:
    """A copy of a PEFT model's base with its adapters merged, in the host's memory.

    Raises ModelError for an adapter on a quantized base.
    """
    import torch

    if kinds := sorted(_QUANTIZED & {type(one).__name__ for one in model.parameters()}):
        raise ModelError(
            f"an adapter on a quantized base ({kinds[0]}) cannot be merged",
            why="the merged weights would differ from those that are trained",
            fix="evaluate it on a running server of the base: url=…, served with --enable-lora; "
            "or save its adapter, and `enginehouse watch` the folder",
        )

    on_host: dict[int, Any] = {}
    for tensor in model.buffers():
        on_host[id(tensor)] = tensor.detach().to("cpu", copy=True)
    for parameter in model.parameters():
        weights = parameter.detach().to("cpu", copy=True)
        on_host[id(parameter)] = torch.nn.Parameter(weights, requires_grad=False)
    # deepcopy takes from its memo what it would have copied on the GPU
    return copy.deepcopy(model, on_host).merge_and_unload()
