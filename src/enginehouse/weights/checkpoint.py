"""A checkpoint that is to replace a served one, checked before the engine sees it. Blocking.

Engines load the tensors whose names fit, cast them to their own type, leave the rest unchanged, and
keep the configuration and chat template that they were started with: a checkpoint with another
shape or rope_theta would silently be served wrongly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import safetensors

from enginehouse.core.errors import ModelError
from enginehouse.core.system_errors import advice
from enginehouse.provisioning.checkpoints import Checkpoint, read_checkpoint
from enginehouse.provisioning.digests import weights_digest
from enginehouse.store.files import write_whole
from enginehouse.store.layout import Layout
from enginehouse.weights.architecture import require_same_architecture, require_same_template

# Unsigned integers of the type's size, and the exponent's bits, all of which NaN and inf have set.
_EXPONENTS = {
    "BF16": ("<u2", 0x7F80),
    "F16": ("<u2", 0x7C00),
    "F32": ("<u4", 0x7F800000),
    "F64": ("<u8", 0x7FF0000000000000),
}
_CHUNK = 1 << 22  # values
_TIED = "lm_head.weight"  # written by some savers only if it is the embedding


class Tensor(msgspec.Struct, frozen=True):
    """A tensor as a file's header describes it; `dtype` as in safetensors (BF16, F32 …)."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def digest_of(folder: Path, *, layout: Layout) -> str:
    """The digest of a checkpoint's weight files. Raises ModelError."""
    return weights_digest(read_checkpoint(folder).weights, layout=layout)


def checked_digest(folder: Path, *, served: Path, layout: Layout) -> str:
    """The digest of a checkpoint that can replace the one in `served`.

    Raises ModelError, with the reason, if it cannot. Files that were not checked before are hashed
    and searched for NaN.
    """
    new, old = read_checkpoint(folder), read_checkpoint(served)
    require_same_architecture(new, old)
    require_same_template(new, old)
    tensors, wanted = tensors_of(new), tensors_of(old)
    if new.config.get("tie_word_embeddings"):
        tensors.pop(_TIED, None)
        wanted.pop(_TIED, None)
    _require_same_tensors(tensors, wanted, folder)
    digest = weights_digest(new.weights, layout=layout)
    known = layout.digests / f"{digest}.finite"
    if not known.exists():
        for file in new.weights:
            _require_finite(file)
        write_whole(known, b"")
    return digest


def tensors_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """A checkpoint's tensors, by name. Raises ModelError for files that are not safetensors."""
    tensors: dict[str, Tensor] = {}
    for file in checkpoint.weights:
        if file.suffix != ".safetensors":
            raise ModelError(
                f"{file} is a pickle, which may run code",
                fix="save the checkpoint with save_pretrained(…, safe_serialization=True)",
            )
        try:
            with safetensors.safe_open(file, framework="numpy") as opened:
                for name in opened.keys():  # noqa: SIM118 - it is not a mapping
                    part = opened.get_slice(name)
                    tensors[name] = Tensor(part.get_dtype(), tuple(part.get_shape()))
        except (OSError, safetensors.SafetensorError) as error:
            raise ModelError(
                f"{file} is damaged or incomplete",
                why=str(error),
                fix=advice(error, otherwise="save it again"),
            ) from error
    return tensors


def _require_same_tensors(
    new: Mapping[str, Tensor], old: Mapping[str, Tensor], folder: Path
) -> None:
    def misfit(what: str, fix: str) -> ModelError:
        return ModelError(f"{folder} does not fit the served model: {what}", fix=fix)

    if missing := sorted(old.keys() - new.keys()):
        raise misfit(f"it has no {_first(missing)}", "save the whole model")
    if extra := sorted(new.keys() - old.keys()):
        raise misfit(
            f"{_first(extra)} is not in the served one", "save the model under its original names"
        )
    for name, wanted in old.items():
        if new[name].shape != wanted.shape:
            raise misfit(
                f"{name} is {new[name]}, and {wanted} in the served one",
                "start a separate server for it",
            )
        types = {new[name].dtype, wanted.dtype}
        if len(types) > 1 and not types <= _EXPONENTS.keys():
            raise misfit(
                f"{name} is {new[name].dtype}, and {wanted.dtype} in the served one",
                "save it in the served checkpoint's type",
            )


def _require_finite(file: Path) -> None:
    """Raise ModelError for NaN, which would outlive the weights in vLLM 0.32's KV cache."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        head = json.loads(opened.read(size))
    head.pop("__metadata__", None)
    for name, tensor in head.items():
        if tensor["dtype"] not in _EXPONENTS:
            continue
        kind, exponent = _EXPONENTS[tensor["dtype"]]
        begin, end = tensor["data_offsets"]
        count = (end - begin) // np.dtype(kind).itemsize
        if not count:
            continue
        values = np.memmap(file, dtype=kind, mode="r", offset=8 + size + begin, shape=(count,))
        for first in range(0, count, _CHUNK):
            if ((values[first : first + _CHUNK] & exponent) == exponent).any():
                raise ModelError(
                    f"{name} in {file} holds NaN or infinity",
                    fix="its training has diverged: take an earlier checkpoint",
                )


def _first(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"
