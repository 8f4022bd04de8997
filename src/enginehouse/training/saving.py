"""Checkpoints and adapters of a model in training, on the disk whole or not at all. Blocking."""

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
    """Whether it is PEFT's: a base model with adapters."""
    return hasattr(model, "peft_config") and hasattr(model, "merge_and_unload")


def save_checkpoint(model: Any, *, tokenizer: Any, folder: Path) -> None:
    """Full weights and tokenizer as transformers saves them; of a PEFT model, merged.

    PEFT merges a copy in the host's memory: the model in training stays as it is, to the bit.
    Replaces what is in `folder`. Raises StoreError, ModelError, and what saving raises.
    """
    if tokenizer is None:
        raise ModelError(
            "no engine can serve a checkpoint without its tokenizer",
            fix="hand the tokenizer over with the model",
        )
    plain = merged(model) if is_adapted(model) else model

    def write(unfinished: Path) -> None:
        plain.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)

    save_whole(write, folder=folder)


def save_adapter(model: Any, *, folder: Path) -> None:
    """The adapter of a PEFT model, as PEFT saves it. Replaces what is in `folder`; raises alike."""
    save_whole(model.save_pretrained, folder=folder)


def save_whole(write: Callable[[Path], None], *, folder: Path) -> None:
    """Make `folder` by `write`, which is given a folder beside it to fill.

    Everything is on the disk (fsync) before the folder has its name. What was there under that
    name is gone only then. Raises StoreError, and what `write` raises; either leaves what was
    there before.
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
            fix="make room, check the permissions, or name another folder",
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
    """A PEFT model's base model with its adapters merged: a copy in the host's memory.

    Raises ModelError for one that is trained on a quantized base.
    """
    import torch

    if kinds := sorted(_QUANTIZED & {type(one).__name__ for one in model.parameters()}):
        raise ModelError(
            f"an adapter on a quantized base ({kinds[0]}) is not merged",
            why="the merged weights would be neither what is trained nor the base's own",
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
