"""A checkpoint that is to take a served one's place, checked before the engine sees it. Blocking.

Engines load what fits by name, cast to their own type, and leave the rest as it was, and they keep
the configuration and chat template that they were started with: a checkpoint of another shape or
with another rope_theta would be served wrongly without a word.
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
from enginehouse.weights.architecture import demand_same_architecture, demand_same_template

# unsigned integers of the type's size, and the bits of an exponent that all are set in NaN and inf
_EXPONENTS = {
    "BF16": ("<u2", 0x7F80),
    "F16": ("<u2", 0x7C00),
    "F32": ("<u4", 0x7F800000),
    "F64": ("<u8", 0x7FF0000000000000),
}
_CHUNK = 1 << 22  # values that are looked at once
_TIED = "lm_head.weight"  # some savers write it, some do not, where it is the embedding


class Tensor(msgspec.Struct, frozen=True):
    """What a file's head says of a tensor; `dtype` as safetensors has it (BF16, F32 …)."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def digest_of(folder: Path, *, layout: Layout) -> str:
    """The digest of a checkpoint's weight files. Raises ModelError."""
    return weights_digest(read_checkpoint(folder).weights, layout=layout)


def checked_digest(folder: Path, *, served: Path, layout: Layout) -> str:
    """The digest of a checkpoint that can take the place of the one in `served`.

    Raises ModelError, with the reason, if it cannot. Hashes, and looks for NaN in, what was not
    looked at before.
    """
    new, old = read_checkpoint(folder), read_checkpoint(served)
    demand_same_architecture(new, old)
    demand_same_template(new, old)
    tensors, wanted = tensors_of(new), tensors_of(old)
    if new.config.get("tie_word_embeddings"):
        tensors.pop(_TIED, None)
        wanted.pop(_TIED, None)
    _demand_same_tensors(tensors, wanted, folder)
    digest = weights_digest(new.weights, layout=layout)
    known = layout.digests / f"{digest}.finite"
    if not known.exists():
        for file in new.weights:
            _demand_finite(file)
        write_whole(known, b"")
    return digest


def tensors_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """A checkpoint's tensors, by name. Raises ModelError for files that are none."""
    found: dict[str, Tensor] = {}
    for file in checkpoint.weights:
        if file.suffix != ".safetensors":
            raise ModelError(
                f"{file} is a pickle, which may run code",
                fix="save the checkpoint with save_pretrained(…, safe_serialization=True)",
            )
        try:
            with safetensors.safe_open(file, framework="numpy") as opened:
                for name in opened.keys():  # noqa: SIM118 - it is no mapping
                    part = opened.get_slice(name)
                    found[name] = Tensor(part.get_dtype(), tuple(part.get_shape()))
        except (OSError, safetensors.SafetensorError) as error:
            raise ModelError(
                f"{file} is broken, or not wholly written yet",
                why=str(error),
                fix=advice(error, otherwise="save it again"),
            ) from error
    return found


def _demand_same_tensors(
    new: Mapping[str, Tensor], old: Mapping[str, Tensor], folder: Path
) -> None:
    def refused(what: str, fix: str) -> ModelError:
        return ModelError(f"{folder} does not fit the served model: {what}", fix=fix)

    if missing := sorted(old.keys() - new.keys()):
        raise refused(f"it has no {_first(missing)}", "save the whole model")
    if extra := sorted(new.keys() - old.keys()):
        raise refused(
            f"{_first(extra)} is not in the served one", "save the model under its own names"
        )
    for name, wanted in old.items():
        if new[name].shape != wanted.shape:
            raise refused(
                f"{name} is {new[name]} there and {wanted} here", "serve it on a server of its own"
            )
        types = {new[name].dtype, wanted.dtype}
        if len(types) > 1 and not types <= _EXPONENTS.keys():
            raise refused(
                f"{name} is {new[name].dtype} there and {wanted.dtype} here",
                "save it in the served checkpoint's type",
            )


def _demand_finite(file: Path) -> None:
    """NaN in the weights is NaN in the engine's KV cache, and outlives them there (vLLM 0.32)."""
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
