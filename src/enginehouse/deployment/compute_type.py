"""The type in which a model is computed: on a CPU, the one that suits it, unless the user chooses.

A CPU without bfloat16 instructions takes four times as long in bfloat16 as in float32; one that has
them takes half as long. Engines only look at the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from enginehouse.engines import arguments
from enginehouse.engines.base import DTypeFlags, ServedEngine, SupportsDTypes
from enginehouse.engines.options import DType, ServerOptions
from enginehouse.engines.registry import load_engine
from enginehouse.processes.cpu import Cpu
from enginehouse.provisioning.checkpoints import Checkpoint
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.weights.checkpoint import tensors_of


class ComputeType(msgspec.Struct, frozen=True, kw_only=True):
    """A type that was chosen automatically, and why."""

    dtype: DType
    reason: str


def type_on_cpu(cpu: Cpu, *, stored: str = "bfloat16") -> ComputeType:
    """The fastest type on this CPU that preserves weights in the type `stored`.

    Weights in float16 are never rounded to bfloat16, which has three fewer bits for the fraction.
    """
    if stored == "float16":
        if cpu.float16:
            return ComputeType(dtype="float16", reason="the CPU computes in the weights' float16")
        return ComputeType(
            dtype="float32", reason="the weights are float16, and the CPU has no float16"
        )
    return ComputeType(dtype="bfloat16" if cpu.bfloat16 else "float32", reason=cpu.evidence)


def choose_type(
    options: ServerOptions,
    *,
    engine: ServedEngine,
    environment: EngineEnvironment,
    checkpoint: Checkpoint,
    cpu: Cpu,
) -> ComputeType | None:
    """The type to start a server in; None leaves the choice to the user's options or the engine.

    The engine chooses on a GPU, and for quantized weights, whose method requires a type.
    Blocking: may read the headers of the weight files.
    """
    if not isinstance(engine, SupportsDTypes) or options.dtype not in engine.dtypes.open:
        return None
    extra, device = arguments.split(options.extra_args), engine.dtypes.device
    on_cpu = device is not None and arguments.option_of(extra, device) == "cpu"
    if environment.variant != "cpu" and not on_cpu:
        return None
    flags = {argument.flag for argument in arguments.read(extra)}
    if flags & engine.dtypes.decisive or is_quantized(checkpoint):
        return None
    return type_on_cpu(cpu, stored=stored_type(checkpoint))


def type_in_command(engine: str | None, command: tuple[str, ...]) -> str | None:
    """The type that a server's command line names; None where it leaves it to the engine."""
    loaded = load_engine(engine)
    return loaded.dtypes.in_command(command) if isinstance(loaded, SupportsDTypes) else None


def automatic_type(checkpoint: Checkpoint, engine: str | None) -> str:
    """The type that an engine computes in unless it is told another one. Blocking."""
    loaded = load_engine(engine)
    flags = loaded.dtypes if isinstance(loaded, SupportsDTypes) else DTypeFlags()
    return flags.default_for(stored_type(checkpoint))


def stored_type(checkpoint: Checkpoint) -> str:
    """The weights' own type, by the configuration or, where that names none, by the files.

    Blocking. Raises ModelError for files that cannot be read.
    """
    for config in _configurations(checkpoint):
        if named := config.get("dtype") or config.get("torch_dtype"):
            return str(named).removeprefix("torch.")
    if any(file.suffix != ".safetensors" for file in checkpoint.weights):
        return "bfloat16"  # a pickle, which only the engine opens
    types = {tensor.dtype for tensor in tensors_of(checkpoint).values()}
    return "float16" if types == {"F16"} else "bfloat16"


def is_quantized(checkpoint: Checkpoint) -> bool:
    """Whether the weights are quantized, as far as the checkpoint's files say."""
    names = ("quantization_config", "compression_config")
    return (checkpoint.folder / "hf_quant_config.json").exists() or any(
        config.get(name) for config in _configurations(checkpoint) for name in names
    )


def _configurations(checkpoint: Checkpoint) -> tuple[Mapping[str, Any], ...]:
    """The model's configuration, and that of the part that generates text."""
    text_config = checkpoint.config.get("text_config")
    nested = (text_config,) if isinstance(text_config, dict) else ()
    return (checkpoint.config, *nested)
