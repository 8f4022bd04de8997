"""What a checkpoint folder contains, and what is missing. Blocking; reads headers, not weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import safetensors

from enginehouse.core.errors import ModelError

_INDEX = "model.safetensors.index.json"
_OLD_INDEX = "pytorch_model.bin.index.json"
# Trainers write these beside the weights.
_NOT_WEIGHTS = {"training_args.bin", "optimizer.bin", "scheduler.bin", "random_states.bin"}
_LFS_POINTER = b"version https://git-lfs"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json", "*.tiktoken")


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A folder that an engine can load: its configuration and its weight files."""

    folder: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def read_checkpoint(folder: Path) -> Checkpoint:
    """Check that `folder` holds a whole model. Raises ModelError saying what is missing."""
    try:
        return _read(folder)
    except OSError as error:
        raise ModelError(
            f"cannot read {error.filename or folder}",
            why=error.strerror,
            fix="check its permissions, and the disk or share that holds it",
        ) from error


def _read(folder: Path) -> Checkpoint:
    names = {path.name for path in folder.iterdir()}
    if "config.json" not in names:
        raise _not_a_model(folder, names)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{folder / 'config.json'} is not valid JSON", why=str(error)) from error
    if not isinstance(config, dict):
        raise ModelError(f"{folder / 'config.json'} does not hold a JSON object")
    weights = _weights(folder, names)
    if not weights:
        raise ModelError(
            f"{folder} holds no weights",
            why="it has config.json, but neither *.safetensors nor *.bin",
            fix="copy or download the weight files too, or wait until they are saved",
        )
    for file in weights:
        with file.open("rb") as opened:
            if opened.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise ModelError(
                    f"{file} is a Git LFS pointer, not the weights",
                    fix=f"run `git lfs pull` in {folder}",
                )
        if file.suffix == ".safetensors":
            try:
                # The header must be readable, and its tensors must fill the file.
                with safetensors.safe_open(file, framework="numpy"):
                    pass
            except safetensors.SafetensorError as error:
                raise ModelError(
                    f"{file} is damaged or incomplete",
                    why=str(error),
                    fix="save or download it again",
                ) from error
    notes: tuple[str, ...] = ()
    if not any(next(folder.glob(pattern), None) for pattern in _TOKENIZERS):
        notes = ("the folder has no tokenizer: the engine may refuse it",)
    return Checkpoint(folder=folder, config=config, weights=weights, notes=notes)


def _weights(folder: Path, names: set[str]) -> tuple[Path, ...]:
    """The files that engines load: those of the index, else *.safetensors, else *.bin."""
    safetensors = {name for name in names if name.endswith(".safetensors")}
    old = {name for name in names if name.endswith(".bin")} - _NOT_WEIGHTS
    for index, present in ((_INDEX, safetensors), (_OLD_INDEX, old)):
        if index in names and (present or index == _INDEX):
            return _indexed(folder, index, names)
        if present:
            return tuple(folder / name for name in sorted(present))
    return ()


def _indexed(folder: Path, index: str, names: set[str]) -> tuple[Path, ...]:
    try:
        content = json.loads((folder / index).read_text(encoding="utf-8"))
        wanted = sorted(set(content["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{folder / index} is not an index of weights", why=str(error)) from error
    if missing := [name for name in wanted if name not in names]:
        raise ModelError(
            f"{folder} lacks {len(missing)} of {len(wanted)} weight files",
            why=f"{index} names {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}",
            fix="copy or download them too, or wait until they are saved",
        )
    return tuple(folder / name for name in wanted)


def _not_a_model(folder: Path, names: set[str]) -> ModelError:
    if "adapter_config.json" in names:
        try:
            adapter = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            adapter = None
        named = adapter.get("base_model_name_or_path") if isinstance(adapter, dict) else None
        base = named or "its base model"
        return ModelError(
            f"{folder} is a LoRA adapter, not a model",
            why="it has adapter_config.json, but no config.json",
            fix=f"give {base} as the model, with enable_lora, and load the adapter into it",
        )
    if gguf := sorted(name for name in names if name.lower().endswith(".gguf")):
        return ModelError(
            f"{folder} holds GGUF files, and one of them must be chosen",
            fix=f"give the file itself: {folder / gguf[0]}",
        )
    deeper = sorted(path.parent.name for path in folder.glob("*/config.json"))
    return ModelError(
        f"{folder} is not a model",
        why="it has no config.json" + (", and is empty" if not names else ""),
        fix=(
            f"did you mean {folder / deeper[-1]}?"
            if deeper
            else "give the folder that holds config.json, the weights and the tokenizer"
        ),
    )
