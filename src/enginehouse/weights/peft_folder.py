"""A PEFT adapter's folder, checked before an engine sees it; no torch. Blocking.

The format: adapter_config.json and adapter_model.safetensors, whose tensors are called
base_model.model.MODULE.lora_A.weight, of shape (rank, inputs), and …lora_B.weight, (outputs, rank)
(https://huggingface.co/docs/peft/developer_guides/checkpoint).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors

from enginehouse.core.errors import AdapterError

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
_PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
_NAME = re.compile(
    r"base_model\.model\.(?P<module>.+)\.(?P<part>lora_(?:embedding_)?[AB])(\.weight)?"
)
_LAYER = re.compile(r"\.(\d+)\.")
# what engines cannot apply, or would apply wrongly: the field, and the values that are none of it
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "use_dora": (None, False),
    "use_qalora": (None, False),
    "use_bdlora": (None, {}),
    "lora_bias": (None, False),
    "bias": (None, "none"),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "megatron_config": (None, {}),
}
# those that change the base model's weights when PEFT loads the adapter
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")

Shapes = Mapping[str, tuple[int, ...]]


class PeftFolder(msgspec.Struct, frozen=True, kw_only=True):
    """What an adapter's folder holds. `modules`: those it changes, by the base model's names.

    `is_zero`: every lora_B is zero, so that it changes nothing (as before the first step).
    """

    base_model: str | None
    rank: int
    alpha: float
    modules: tuple[str, ...]
    size: int
    is_zero: bool


def read_peft_folder(
    folder: Path, *, base: Shapes | None = None, max_rank: int | None = None
) -> PeftFolder:
    """Read and check an adapter. `base`: the shapes of the base model's weights, by their names.

    Raises AdapterError, with the reason and what to do, for what is no LoRA that an engine can
    apply to that base.
    """
    config = _config(folder)
    _demand_plain(config, folder)
    parts = _parts(folder)
    shapes = {name: shape for name, (shape, _) in parts.items()}
    modules = _pairs(shapes, folder)
    rank = _rank(shapes, config, folder, max_rank=max_rank)
    if base is not None:
        _demand_fit(modules, shapes, base, folder, base_name=config.get("base_model_name_or_path"))
        _demand_complete(modules, base, config, folder)
    _demand_finite(parts, folder)
    return PeftFolder(
        base_model=config.get("base_model_name_or_path"),
        rank=rank,
        alpha=float(config.get("lora_alpha") or rank),
        modules=tuple(sorted(modules)),
        size=(folder / TENSORS).stat().st_size,
        is_zero=not any(part.any() for name, (_, part) in parts.items() if _is_b(name)),
    )


def checkpoint_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a checkpoint's weights, by name, from the heads of its safetensors files.

    Empty where it has none. Raises AdapterError for a file that is broken.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safetensors.safe_open(file, framework="numpy") as opened:
                names = opened.keys()
                shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in names}
        except (OSError, safetensors.SafetensorError) as error:
            raise AdapterError(f"{file} cannot be read", why=str(error)) from error
    return shapes


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise AdapterError(
            f"{folder} is no PEFT adapter",
            why=f"there is no {CONFIG}" if folder.is_dir() else "there is no such folder",
            fix="give the folder that `save_pretrained` of a PEFT model has written",
        ) from None
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} cannot be read", why=str(error), fix="save it again") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise AdapterError(
            f"{folder} holds no LoRA",
            why=f"the peft_type in {CONFIG} is {kind!r}",
            fix="only LoRA adapters can be loaded into a running engine; merge others",
        )
    return config


def _demand_plain(config: Mapping[str, Any], folder: Path) -> None:
    for name, plain in _PLAIN.items():
        if config.get(name) not in plain:
            raise AdapterError(
                f"{folder} uses {name} ({config[name]!r}), which engines do not apply",
                fix="train a plain LoRA, or merge this one into a checkpoint",
            )
    given = config.get("init_lora_weights")
    if isinstance(given, str) and given.lower().startswith(_CHANGES_BASE):
        raise AdapterError(
            f"{folder} was initialised with {given}, which changes the base model's weights",
            fix="save it with PEFT's path_initial_model_for_weight_conversion",
        )


def _parts(folder: Path) -> dict[str, tuple[tuple[int, ...], np.ndarray[Any, Any]]]:
    """Shape and values of every tensor, by name; bfloat16 values as their 16 bits."""
    path = folder / TENSORS
    if not path.is_file():
        pickle = next((name for name in _PICKLES if (folder / name).exists()), None)
        why = f"there is only {pickle}, a pickle, which may run code" if pickle else None
        raise AdapterError(
            f"{folder} has no {TENSORS}",
            why=why,
            fix="save it with save_pretrained(…, safe_serialization=True)",
        )
    try:
        tensors = safetensors.deserialize(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise AdapterError(
            f"{path} is broken, or not wholly written yet", why=str(error), fix="save it again"
        ) from error
    return {
        name: (tuple(tensor["shape"]), _values(tensor["dtype"], tensor["data"]))
        for name, tensor in tensors
    }


_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def _values(dtype: str, data: bytes | bytearray) -> np.ndarray[Any, Any]:
    if dtype not in _DTYPES:
        raise AdapterError(
            f"the adapter's tensors are {dtype}", fix="save it as bfloat16, float16 or float32"
        )
    return np.frombuffer(data, dtype=_DTYPES[dtype])


def _pairs(shapes: Shapes, folder: Path) -> set[str]:
    """The modules; each has an A and a B of the same rank, and there is nothing besides."""
    found: dict[tuple[str, str], tuple[int, ...]] = {}
    for name, shape in shapes.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise AdapterError(
                f"{folder} holds {name}, which is no part of a LoRA",
                fix="save the adapter alone, with save_pretrained of the PEFT model",
            )
        found[match["module"], match["part"][-1]] = shape
    modules = {module for module, _ in found}
    if not modules:
        raise AdapterError(f"{folder} holds no tensors", fix="save it again")
    for module in sorted(modules):
        missing = next((part for part in "AB" if (module, part) not in found), None)
        if missing:
            raise AdapterError(
                f"{folder} is incomplete: {module} has no lora_{missing}", fix="save it again"
            )
    return modules


def _is_b(name: str) -> bool:
    return ".lora_B" in name or ".lora_embedding_B" in name


def _rank(shapes: Shapes, config: Mapping[str, Any], folder: Path, *, max_rank: int | None) -> int:
    rank = max(min(shape) for shape in shapes.values())
    declared = max([config.get("r") or 0, *(config.get("rank_pattern") or {}).values()])
    if rank > declared:
        raise AdapterError(
            f"{folder} has tensors of rank {rank}, and its {CONFIG} says {declared}",
            fix="the configuration is another adapter's: save both together",
        )
    if max_rank is not None and declared > max_rank:
        raise AdapterError(
            f"{folder} has rank {declared}, and the server takes {max_rank} at most",
            fix=f"start the server with --max-lora-rank {_next_rank(declared)}",
        )
    return rank


def _next_rank(rank: int) -> int:
    """The smallest value of --max-lora-rank that vLLM takes and that is not below `rank`."""
    return next((r for r in (8, 16, 32, 64, 128, 256, 320, 512) if r >= rank), rank)


def _demand_fit(
    modules: set[str], shapes: Shapes, base: Shapes, folder: Path, *, base_name: str | None
) -> None:
    made_for = f"it was made for {base_name}" if base_name else None
    for module in sorted(modules):
        weight = base.get(f"{module}.weight")
        if weight is None:
            raise AdapterError(
                f"{folder} changes {module}, which the base model does not have",
                why=made_for,
                fix="serve the model that it was trained on; or the module names have another "
                "prefix than the checkpoint's",
            )
        a = shapes.get(f"base_model.model.{module}.lora_A.weight")
        b = shapes.get(f"base_model.model.{module}.lora_B.weight")
        if a is None or b is None or len(weight) != 2:
            continue  # an embedding, or experts in one tensor: the engine checks them
        if (b[0], a[1]) != weight:
            raise AdapterError(
                f"{folder} does not fit the base model: {module} is {b[0]} by {a[1]} there and "
                f"{weight[0]} by {weight[1]} here",
                why=made_for,
                fix="serve the model that it was trained on",
            )


def _demand_complete(
    modules: set[str], base: Shapes, config: Mapping[str, Any], folder: Path
) -> None:
    for module in _targets(base, config):
        if module not in modules:
            raise AdapterError(
                f"{folder} is incomplete: there is nothing for {module}",
                why=f"its {CONFIG} names it as a target",
                fix="save it again",
            )


def _targets(base: Shapes, config: Mapping[str, Any]) -> Iterator[str]:
    """The base model's linear modules that the configuration names, as PEFT would find them."""
    wanted, spared = config.get("target_modules"), config.get("exclude_modules")
    layers = config.get("layers_to_transform")
    if not wanted or wanted == "all-linear" or config.get("layers_pattern"):
        return
    only = {layers} if isinstance(layers, int) else set(layers or ())
    for name, shape in base.items():
        module = name.removesuffix(".weight")
        if module == name or len(shape) != 2 or not _named(module, wanted):
            continue
        layer = _LAYER.search(module)
        if (spared and _named(module, spared)) or (
            only and (layer is None or int(layer[1]) not in only)
        ):
            continue
        yield module


def _named(module: str, names: str | list[str]) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _demand_finite(
    parts: Mapping[str, tuple[tuple[int, ...], np.ndarray[Any, Any]]], folder: Path
) -> None:
    for name, (_, values) in parts.items():
        is_bfloat16 = values.dtype == np.uint16  # whose exponent is the same 8 bits as here
        wrong = (values & 0x7F80) == 0x7F80 if is_bfloat16 else ~np.isfinite(values)
        if wrong.any():
            raise AdapterError(
                f"{folder} holds NaN or infinity",
                why=f"{int(wrong.sum())} of {values.size} values of {name}",
                fix="its training has diverged: take an earlier checkpoint",
            )
