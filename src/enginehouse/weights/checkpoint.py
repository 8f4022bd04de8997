"""A checkpoint that is to replace a served one, checked before the engine sees it. Blocking.

Engines load the tensors whose names fit, cast them to their own type, leave the rest unchanged, and
keep the configuration and chat template that they were started with: a checkpoint with another
shape or rope_theta would silently be served wrongly.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from enginehouse.core.errors import ModelError
from enginehouse.core.system_errors import advice
from enginehouse.provisioning.checkpoints import Checkpoint, read_checkpoint
from enginehouse.provisioning.digests import weights_digest
from enginehouse.store.files import write_whole
from enginehouse.store.layout import Layout
from enginehouse.weights.architecture import require_same_architecture, require_same_template
from enginehouse.weights.tensors import DAMAGED, FLOATS, Tensor, read_tensors, read_values

_TIED = "lm_head.weight"  # written by some savers only if it is the embedding


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
            tensors |= read_tensors(file)
        except DAMAGED as error:
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
        if len(types) > 1 and not types <= FLOATS.keys():
            raise misfit(
                f"{name} is {new[name].dtype}, and {wanted.dtype} in the served one",
                "save it in the served checkpoint's type",
            )


def _require_finite(file: Path) -> None:
    """Raise ModelError for NaN, which would outlive the weights in vLLM 0.32's KV cache."""
    for name, tensor in read_tensors(file).items():
        if tensor.dtype in FLOATS and read_values(file, tensor).not_finite:
            raise ModelError(
                f"{name} in {file} holds NaN or infinity",
                fix="its training has diverged: take an earlier checkpoint",
            )


def _first(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"
