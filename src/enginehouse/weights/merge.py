"""A base model and its LoRA adapter merged into one checkpoint; numpy, no torch. Blocking.

Only the tensors that the adapter changes are read as numbers: W + scaling (B A). All else is copied
as it is, a tensor at a time, so that a checkpoint larger than the memory can be merged.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from enginehouse.core.errors import AdapterError, ModelError, StoreError
from enginehouse.core.system_errors import advice
from enginehouse.provisioning.checkpoints import Checkpoint, read_checkpoint
from enginehouse.weights.checkpoint import tensors_of
from enginehouse.weights.peft_folder import TENSORS, read_peft_folder
from enginehouse.weights.tensors import FLOATS, Tensor, as_bytes, read_float32, read_tensors

_INDEX = "model.safetensors.index.json"
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack"}
_TIED = "tie_word_embeddings"
_CHUNK = 1 << 24  # bytes


class Merged(msgspec.Struct, frozen=True, kw_only=True):
    """What was written. `dtypes` are the types of the changed weights.

    `untied`: the output layer now has weights of its own, and shared the embedding's in the base.
    """

    path: Path
    modules: int
    dtypes: tuple[str, ...]
    untied: bool


class _Change(msgspec.Struct, frozen=True):
    """What becomes of the tensor `base`: its values plus `scaling` times B A, as `dtype`."""

    base: str
    a: NDArray[np.float32]
    b: NDArray[np.float32]
    scaling: float
    transposed: bool
    dtype: str
    shape: tuple[int, ...]

    def apply(self, values: NDArray[np.float32]) -> bytes:
        product = self.scaling * (self.b @ self.a)
        return as_bytes(values + (product.T if self.transposed else product), dtype=self.dtype)


def merge(base: Path, adapter: Path, out: Path, *, keep_dtype: bool = False) -> Merged:
    """Write the checkpoint `out`, which is not there yet, whole or not at all.

    Weights that the adapter changes become float32, unless `keep_dtype`, which rounds them to the
    type that they have. An adapter on an output layer that shares the embedding's weights gives it
    weights of its own. Raises ModelError and AdapterError for what cannot be merged, StoreError if
    `out` exists, and OSError.
    """
    if os.path.lexists(out):
        raise StoreError(f"{out} exists already", fix="choose another folder, or remove it")
    partial = out.with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise StoreError(
            f"cannot write {out}",
            why=error.strerror,
            fix=advice(error, otherwise="choose another folder"),
        ) from error
    try:
        checkpoint = _read_unquantized(base)
        tensors = tensors_of(checkpoint)
        changes = _changes(adapter, checkpoint, tensors, keep_dtype=keep_dtype)
        untied = any(change.base != name for name, change in changes.items())
        _copy_files(checkpoint, partial, untied=untied)
        _write_weights(checkpoint, changes, tensors, partial)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Merged(
        path=out,
        modules=len(changes),
        dtypes=tuple(sorted({change.dtype for change in changes.values()})),
        untied=untied,
    )


def _read_unquantized(base: Path) -> Checkpoint:
    checkpoint = read_checkpoint(base)
    if "quantization_config" in checkpoint.config:
        raise ModelError(
            f"{base} is quantized, and an adapter can only be merged into full weights",
            fix="merge it into the model that was quantized",
        )
    return checkpoint


def _changes(
    adapter: Path, checkpoint: Checkpoint, tensors: Mapping[str, Tensor], *, keep_dtype: bool
) -> dict[str, _Change]:
    """By the name of the tensor that is written."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    peft = read_peft_folder(adapter, base=shapes)
    stored = read_tensors(adapter / TENSORS)
    tied = _is_tied(checkpoint.config)
    changes = {}
    for module in peft.modules:
        names = [f"base_model.model.{module}.lora_{side}.weight" for side in "AB"]
        name = source = f"{module}.weight"
        if module.rpartition(".")[2] == "lm_head" and (tied or name not in tensors):
            source = _embedding(tensors, (stored[names[1]].shape[0], stored[names[0]].shape[1]))
        if source not in tensors or not stored.keys() >= set(names):
            raise AdapterError(
                f"{adapter} changes {module}, which cannot be merged",
                why=f"{checkpoint.folder} has no weight of that name, or it is an embedding's or "
                "an expert's",
                fix="check that it was trained on this model, or merge it with PEFT's "
                "merge_and_unload",
            )
        if tensors[source].dtype not in FLOATS:
            raise ModelError(f"{source} in {checkpoint.folder} is {tensors[source].dtype}")
        a, b = (read_float32(adapter / TENSORS, stored[name]) for name in names)
        change = _Change(
            base=source,
            a=a,
            b=b,
            scaling=peft.scalings[module],
            transposed=peft.is_transposed and source == name,
            dtype=tensors[source].dtype if keep_dtype else "F32",
            shape=tensors[source].shape,
        )
        product = (b.shape[0], a.shape[1])
        if change.shape != (product[::-1] if change.transposed else product):
            raise AdapterError(
                f"{adapter} does not fit {checkpoint.folder}: {module} is {product[0]} by "
                f"{product[1]} there, and {list(change.shape)} here",
                fix="merge it into the model that it was trained on",
            )
        changes[name] = change
    return changes


def _is_tied(config: Mapping[str, Any]) -> bool:
    text = config.get("text_config")
    return bool(config.get(_TIED) or (isinstance(text, dict) and text.get(_TIED)))


def _embedding(tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> str:
    """The tensor that a tied output layer has; "" if none or several could be it."""
    found = [
        name
        for name, tensor in tensors.items()
        if tensor.shape == shape and ("embed" in name or name.endswith("wte.weight"))
    ]
    return found[0] if len(found) == 1 else ""


def _copy_files(checkpoint: Checkpoint, out: Path, *, untied: bool) -> None:
    """All but the weights: the configuration, the tokenizer, the chat template, the licence."""
    for file in checkpoint.folder.iterdir():
        is_index = file.name.endswith(".index.json")
        if file.is_file() and file.suffix not in _WEIGHTS and not is_index:
            shutil.copyfile(file, out / file.name)
    if untied:
        config = {**checkpoint.config, _TIED: False}
        if isinstance(config.get("text_config"), dict):
            config["text_config"] = {**config["text_config"], _TIED: False}
        (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_weights(
    checkpoint: Checkpoint,
    changes: Mapping[str, _Change],
    tensors: Mapping[str, Tensor],
    out: Path,
) -> None:
    """Files of the same names; a tensor that the base does not have goes to the last one."""
    places: dict[str, str] = {}
    where = {name: file for file in checkpoint.weights for name in read_tensors(file)}
    total = 0
    for file in checkpoint.weights:
        names = [name for name in tensors if where[name] == file]
        if file == checkpoint.weights[-1]:
            names += [name for name in changes if name not in tensors]
        places |= dict.fromkeys(names, file.name)
        total += _write_file(out / file.name, names, changes, tensors, where)
    if len(checkpoint.weights) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (out / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_file(
    path: Path,
    names: list[str],
    changes: Mapping[str, _Change],
    tensors: Mapping[str, Tensor],
    where: Mapping[str, Path],
) -> int:
    """Write a safetensors file: the length of the head, the head, and the values in a row.

    Returns the size of the values in bytes.
    """
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        begin = end
        if change := changes.get(name):
            count = int(np.prod(change.shape, dtype=np.int64))
            end += count * np.dtype(FLOATS[change.dtype][0]).itemsize
            head[name] = {"dtype": change.dtype, "shape": change.shape}
        else:
            end += tensors[name].end - tensors[name].begin
            head[name] = {"dtype": tensors[name].dtype, "shape": tensors[name].shape}
        head[name]["data_offsets"] = [begin, end]
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)  # values are aligned to 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            if change := changes.get(name):
                values = read_float32(where[change.base], tensors[change.base])
                file.write(change.apply(values))
            else:
                file.writelines(_stored(where[name], tensors[name]))
    return end


def _stored(path: Path, tensor: Tensor) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(tensor.begin)
        left = tensor.end - tensor.begin
        while left:
            part = file.read(min(left, _CHUNK))
            if not part:
                raise ModelError(f"{path} has become shorter while it was read")
            left -= len(part)
            yield part
