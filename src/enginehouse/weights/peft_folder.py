"""A PEFT adapter's folder, checked before an engine sees it; no torch. Blocking.

The format: adapter_config.json and adapter_model.safetensors, whose tensors are called
base_model.model.MODULE.lora_A.weight, of shape (rank, inputs), and …lora_B.weight, (outputs, rank)
(https://huggingface.co/docs/peft/developer_guides/checkpoint).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from enginehouse.core.errors import AdapterError
from enginehouse.core.system_errors import advice
from enginehouse.weights.tensors import DAMAGED, FLOATS, Values, read_tensors, read_values

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
_PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
_NAME = re.compile(
    r"base_model\.model\.(?P<module>.+)\.(?P<part>lora_(?:embedding_)?[AB])(\.weight)?"
)
_LAYER = re.compile(r"\.(\d+)\.")
_WITHIN = re.compile(r"[^.]+\.\d+\..+")  # a module's name from its layer on
# What engines cannot apply, or would apply wrongly: the field, and its harmless values.
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
# Initialisations that change the base model's weights when PEFT loads the adapter.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
_Rank = Annotated[int, msgspec.Meta(ge=1)]

_Number = TypeVar("_Number", int, float)

Shapes = Mapping[str, tuple[int, ...]]


class PeftFolder(msgspec.Struct, frozen=True, kw_only=True):
    """The content of an adapter's folder. `modules`: those it changes, by the base model's names.

    `scalings` are what each module's B A is multiplied with; `is_transposed`: the base's weights
    are stored as (inputs, outputs), as in GPT-2. `size` is that of the tensors' file in bytes.
    `is_zero`: its A, its B or its alpha is zero wherever it is applied, so that it changes nothing
    (as before the first step).
    """

    base_model: str | None
    rank: int
    alpha: float
    modules: tuple[str, ...]
    scalings: Mapping[str, float]
    is_transposed: bool
    size: int
    is_zero: bool


class _Config(msgspec.Struct, frozen=True):
    """The fields of adapter_config.json that are read here, of the types that PEFT writes."""

    r: _Rank
    lora_alpha: Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)]  # excludes NaN
    base_model_name_or_path: str | None = None
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    target_parameters: list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool | None = None
    fan_in_fan_out: bool | None = None

    def rank_of(self, module: str) -> int:
        """The rank that PEFT gives a module: of the first pattern that ends its name, or `r`."""
        return _by_pattern(self.rank_pattern, module, otherwise=self.r)

    def scaling_of(self, module: str) -> float:
        """What PEFT multiplies a module's B A with."""
        alpha = _by_pattern(self.alpha_pattern, module, otherwise=self.lora_alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _by_pattern(
    patterns: Mapping[str, _Number] | None, module: str, *, otherwise: _Number
) -> _Number:
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise


class _Tensor(msgspec.Struct, frozen=True):
    """A tensor's shape, and the properties of its values."""

    shape: tuple[int, ...]
    values: Values


def read_peft_folder(
    folder: Path, *, base: Shapes | None = None, max_rank: int | None = None
) -> PeftFolder:
    """Read and check an adapter. `base`: the shapes of the base model's weights, by their names.

    An adapter whose modules all have another prefix there is not compared with the base. Raises
    AdapterError, with the reason and what to do, unless it is a LoRA that an engine can apply.
    """
    config = _config(folder)
    tensors = _tensors(folder)
    modules = _modules(tensors, folder)
    rank = _rank(modules, config, folder)
    declared = max([config.r, *(config.rank_pattern or {}).values()])
    if max_rank is not None and declared > max_rank:
        raise AdapterError(
            f"{folder} has rank {declared}, and the server takes {max_rank} at most",
            fix=f"start the server with --max-lora-rank {declared} or the next larger one that it "
            "knows, or train the adapter with a smaller rank",
        )
    if base is not None and not _has_other_prefix(modules, base):
        _require_fit(modules, base, config, folder)
        for module in _targets(base, config):
            if module not in modules:
                raise AdapterError(
                    f"{folder} is incomplete: there is nothing for {module}",
                    why=f"its {CONFIG} names it as a target",
                    fix="save it again",
                )
    for name, tensor in tensors.items():
        if tensor.values.not_finite:
            raise AdapterError(
                f"{folder} holds NaN or infinity",
                why=f"{tensor.values.not_finite} of the values of {name}, of shape {tensor.shape}",
                fix="its training has diverged: take an earlier checkpoint",
            )
    return PeftFolder(
        base_model=config.base_model_name_or_path,
        rank=rank,
        alpha=config.lora_alpha,
        modules=tuple(sorted(modules)),
        scalings={module: config.scaling_of(module) for module in modules},
        is_transposed=bool(config.fan_in_fan_out),
        size=(folder / TENSORS).stat().st_size,
        is_zero=config.lora_alpha == 0
        or all(part["A"].values.is_zero or part["B"].values.is_zero for part in modules.values()),
    )


def checkpoint_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a checkpoint's weights, by name, from the headers of its safetensors files.

    Empty if it has no such files. Raises AdapterError for a damaged one.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            shapes |= {name: tensor.shape for name, tensor in read_tensors(file).items()}
        except DAMAGED as error:
            raise AdapterError(f"{file} cannot be read", why=str(error)) from error
    return shapes


def _config(folder: Path) -> _Config:
    path = folder / CONFIG
    try:
        fields = json.loads(path.read_bytes())
    except FileNotFoundError:
        if not folder.is_dir():
            raise AdapterError(
                f"the adapter {folder} was not found",
                why="there is no such folder",
                fix="check the path; a run is resumed with its adapters where they were",
            ) from None
        raise AdapterError(
            f"{folder} is not a PEFT adapter",
            why=f"there is no {CONFIG}",
            fix="give a folder that `save_pretrained` of a PEFT model has written",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(
            f"{path} cannot be read", why=str(error), fix=advice(error, otherwise="save it again")
        ) from error
    if not isinstance(fields, dict) or fields.get("peft_type") != "LORA":
        kind = fields.get("peft_type") if isinstance(fields, dict) else type(fields).__name__
        raise AdapterError(
            f"{folder} holds no LoRA",
            why=f"the peft_type in {CONFIG} is {kind!r}",
            fix="only LoRA adapters can be loaded into a running engine; merge others",
        )
    for name, plain in _PLAIN.items():
        if fields.get(name) not in plain:
            raise AdapterError(
                f"{folder} uses {name} ({fields[name]!r}), which engines do not apply",
                fix="train a plain LoRA, or merge this one into a checkpoint",
            )
    given = fields.get("init_lora_weights")
    if isinstance(given, str) and given.lower().startswith(_CHANGES_BASE):
        raise AdapterError(
            f"{folder} was initialised with {given}, which changes the base model's weights",
            fix="save it with PEFT's path_initial_model_for_weight_conversion",
        )
    try:
        config = msgspec.convert(fields, _Config)
        for text in (
            config.target_modules,
            config.exclude_modules,
            *(config.rank_pattern or ()),
            *(config.alpha_pattern or ()),
        ):
            re.compile(text if isinstance(text, str) else "")
    except (msgspec.ValidationError, re.error) as error:
        raise AdapterError(
            f"{path} is not what PEFT writes", why=str(error), fix="save it again"
        ) from error
    return config


def _tensors(folder: Path) -> dict[str, _Tensor]:
    """Every tensor by name; only a part of one is in memory at a time."""
    path = folder / TENSORS
    if not path.is_file():
        pickle = next((name for name in _PICKLES if (folder / name).exists()), None)
        raise AdapterError(
            f"{folder} has no {TENSORS}",
            why=f"there is only {pickle}, a pickle, which may run code" if pickle else None,
            fix="save it with save_pretrained(…, safe_serialization=True)",
        )
    tensors = {}
    try:
        for name, tensor in read_tensors(path).items():
            if tensor.dtype not in FLOATS:
                raise AdapterError(
                    f"{folder} holds tensors of type {tensor.dtype}",
                    fix="save it as bfloat16, float16 or float32",
                )
            tensors[name] = _Tensor(tensor.shape, read_values(path, tensor))
    except DAMAGED as error:
        raise AdapterError(
            f"{path} is damaged or incomplete",
            why=str(error),
            fix=advice(error, otherwise="save it again"),
        ) from error
    return tensors


def _modules(tensors: Mapping[str, _Tensor], folder: Path) -> dict[str, dict[str, _Tensor]]:
    """Each module's A and B. Raises AdapterError for any other tensor."""
    modules: dict[str, dict[str, _Tensor]] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise AdapterError(
                f"{folder} holds {name}, which is not part of a LoRA",
                fix="save the adapter alone, with save_pretrained of the PEFT model",
            )
        if len(tensor.shape) < 2 or 0 in tensor.shape:
            raise AdapterError(
                f"{folder} is broken: {name} has the shape {tensor.shape}", fix="save it again"
            )
        modules.setdefault(match["module"], {})[match["part"][-1]] = tensor
    if not modules:
        raise AdapterError(f"{folder} holds no tensors", fix="save it again")
    for module, parts in sorted(modules.items()):
        for missing in {"A", "B"} - parts.keys():
            raise AdapterError(
                f"{folder} is incomplete: {module} has no lora_{missing}", fix="save it again"
            )
    return modules


def _rank(modules: Mapping[str, Mapping[str, _Tensor]], config: _Config, folder: Path) -> int:
    """The largest rank. An A and its B must have the same, which must be the declared one."""
    largest = 0
    for module, parts in sorted(modules.items()):
        rank, other = parts["A"].shape[0], parts["B"].shape[1]
        if rank != other:
            raise AdapterError(
                f"{folder} is broken: in {module}, lora_A has rank {rank} and lora_B {other}",
                fix="save it again",
            )
        # Experts in one parameter have their ranks concatenated.
        declared = config.rank_of(module)
        if rank != declared and not (config.target_parameters and rank % declared == 0):
            raise AdapterError(
                f"{folder} has rank {rank} in {module}, and its {CONFIG} says {declared}",
                why="an engine would scale it wrongly",
                fix="the configuration belongs to another adapter: save both together",
            )
        largest = max(largest, declared)
    return largest


def _require_fit(
    modules: Mapping[str, Mapping[str, _Tensor]], base: Shapes, config: _Config, folder: Path
) -> None:
    made_for = (
        config.base_model_name_or_path and f"it was made for {config.base_model_name_or_path}"
    )
    parameters: dict[str, set[str]] = {}
    for weight_name in base:
        module, _, parameter = weight_name.rpartition(".")
        parameters.setdefault(module, set()).add(parameter)
    for module, parts in sorted(modules.items()):
        if config.target_parameters or module.rpartition(".")[2] == "lm_head":
            continue  # experts in one parameter, or a head tied to the embedding
        if module not in parameters:
            raise AdapterError(
                f"{folder} changes {module}, which the base model does not have",
                why=made_for,
                fix="serve the model that it was trained on, or check that its module names have "
                "the checkpoint's prefix",
            )
        plain = parameters[module] <= {"weight", "bias"} and f"{module}.weight" not in parameters
        weight = base.get(f"{module}.weight", ())
        if not plain or len(weight) != 2 or len(parts["A"].shape) != 2:
            continue  # quantized, or a convolution: the engine checks it
        shape = (parts["B"].shape[0], parts["A"].shape[1])
        # Stored transposed, as in GPT-2, or an embedding.
        may_be_transposed = config.fan_in_fan_out or "embed" in module
        if shape != weight and not (shape == weight[::-1] and may_be_transposed):
            raise AdapterError(
                f"{folder} does not fit the base model: {module} is {shape[0]} by {shape[1]} there "
                f"and {weight[0]} by {weight[1]} here",
                why=made_for,
                fix="serve the model that it was trained on",
            )


def _has_other_prefix(modules: Iterable[str], base: Shapes) -> bool:
    """Whether all modules are in a layer of the base's, but under another prefix.

    transformers 5 names those of vision models so: language_model.layers where the checkpoint has
    layers. Engines map such names, or answer as the base, which the proof detects.
    """
    names = {name.rpartition(".")[0] for name in base}
    within = {match[0] for name in names if (match := _WITHIN.search(name))}
    matches = [_WITHIN.search(module) for module in modules]
    return names.isdisjoint(modules) and all(match and match[0] in within for match in matches)


def _targets(base: Shapes, config: _Config) -> Iterator[str]:
    """The base model's linear modules that the configuration names, as PEFT would find them."""
    wanted, excluded = config.target_modules, config.exclude_modules
    layers = config.layers_to_transform
    if not wanted or wanted == "all-linear" or config.layers_pattern:
        return
    only = {layers} if isinstance(layers, int) else set(layers or ())
    for name, shape in base.items():
        module = name.removesuffix(".weight")
        if module == name or len(shape) != 2 or not _named(module, wanted):
            continue
        layer = _LAYER.search(module)
        if (excluded and _named(module, excluded)) or (
            only and (layer is None or int(layer[1]) not in only)
        ):
            continue
        yield module


def _named(module: str, names: str | list[str]) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)
