"""Settings composed by Hydra: the group `backend`, whose files are packaged in configs/.

Your own Hydra application finds them if its `hydra.searchpath` contains CONFIGS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from pydantic import Field, field_validator

from enginehouse.core.errors import ConfigurationError, UnknownNameError, nearest
from enginehouse.core.strict_model import StrictModel
from enginehouse.deployment.configuration import ServeConfig, merged, parse
from enginehouse.engines.options import DType, PositiveInt

Settings = TypeVar("Settings", bound=StrictModel)
CONFIGS = "pkg://enginehouse.facades.agent_arena.configs"


class FunctionCalling(StrictModel):
    """Whether and how tools may be called."""

    enabled: bool = True
    """Whether tools may be called; a vLLM that is started for this parses calls."""
    format: Literal["json"] = "json"
    """The form of a call's arguments: JSON values."""


class Generation(StrictModel):
    """Sampling parameters, for any engine."""

    temperature: Annotated[float, Field(ge=0)] = 0.7
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Nucleus sampling; 1 is off."""
    top_k: Annotated[int, Field(ge=0)] = 40
    """Only the k most likely tokens; 0 is off."""
    max_tokens: PositiveInt = 512
    """The longest answer, in tokens."""
    function_calling: FunctionCalling = FunctionCalling()
    """Tool calls."""


class VllmSettings(Generation):
    """backend/vllm.yaml: a vLLM server, running or to be started, and how to ask it."""

    type: Literal["vllm"] = "vllm"
    model: str
    """The model to serve, and its name in requests."""
    host: str = "localhost"
    """The address that the server listens on."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Its port."""
    api_base: str
    """The address for requests; http://host:port/v1 in the packaged file."""
    api_key: Annotated[str, Field(repr=False)] = "EMPTY"
    """The key that requests carry; EMPTY for a server that needs none."""
    tensor_parallel_size: PositiveInt | None = None
    """GPUs that share each layer."""
    dtype: DType | None = None
    """The number type; half is float16; auto leaves the choice to Enginehouse."""
    max_model_len: PositiveInt | None = None
    """The longest prompt and answer together, in tokens."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    """The fraction of a GPU's memory that the engine may take."""

    @field_validator("dtype", mode="before")
    @classmethod
    def _half(cls, value: Any) -> Any:
        return "float16" if value == "half" else value

    def serving(self) -> ServeConfig:
        """The server that these settings describe."""
        names = ("tensor_parallel_size", "dtype", "max_model_len", "gpu_memory_utilization")
        server: dict[str, Any] = {name: getattr(self, name) for name in names}
        if self.dtype == "auto":  # the default of the packaged file
            server["dtype"] = None
        server |= {"host": self.host, "port": self.port, "served_model_name": self.model}
        if self.api_key != "EMPTY":
            server["api_key"] = self.api_key
        values = {"model": self.model, "engine": "vllm", "server": server}
        return _parsed(ServeConfig, merged({}, values), origin="backend")


class LlamaCppSettings(Generation):
    """backend/llama_cpp.yaml: a GGUF file, served by llama.cpp while it is in use."""

    type: Literal["llama_cpp"] = "llama_cpp"
    model_path: str
    """The GGUF file."""
    n_ctx: PositiveInt = 4096
    """The longest prompt and answer together, in tokens."""
    n_parallel: PositiveInt = 1
    """Prompts answered at the same time, each with n_ctx tokens."""
    n_batch: PositiveInt | None = None
    """Tokens of a prompt that are processed at once."""
    n_threads: PositiveInt | None = None
    """CPU threads."""
    n_gpu_layers: Annotated[int, Field(ge=-1)] = 0
    """Layers on the GPU; -1 is all."""
    repeat_penalty: Annotated[float, Field(gt=0)] = 1.0
    """Divides the likelihood of earlier tokens; 1 is off."""
    use_mmap: bool = True
    """Whether the file is mapped into memory rather than read."""
    use_mlock: bool = False
    """Whether the model is locked in memory."""


class HfSettings(Generation):
    """backend/hf.yaml: a checkpoint, served by Hugging Face Transformers while it is in use."""

    type: Literal["hf"] = "hf"
    model: str
    """A Hugging Face handle, a checkpoint folder, or a bundled name (smollm2)."""
    dtype: DType | None = None
    """The weights' type."""
    max_model_len: PositiveInt | None = None
    """The longest prompt and answer together, in tokens."""


BackendSettings = VllmSettings | LlamaCppSettings | HfSettings

_KINDS: dict[str, type[VllmSettings | LlamaCppSettings | HfSettings]] = {
    "vllm": VllmSettings,
    "llama_cpp": LlamaCppSettings,
    "hf": HfSettings,
}
_LEFT_OUT = {
    "low_vram": "llama.cpp no longer has it; lower n_gpu_layers instead",
    "function_calling.max_retries": "an invalid call is repaired once, then reported",
}


def compose_backend(overrides: Sequence[str] = ()) -> BackendSettings:
    """The group's settings after Hydra's overrides: ("backend=llama_cpp", "backend.n_ctx=2048").

    The default is backend/vllm.yaml. Raises ConfigurationError, naming the nearest key. Not
    thread-safe: Hydra has global state.
    """
    running = GlobalHydra.instance().hydra  # of an application that calls this
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module(CONFIGS.removeprefix("pkg://"), version_base="1.3"):
            composed = compose("config", overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise _explained(error) from error
    finally:
        GlobalHydra.instance().hydra = running
    return parse_backend(composed.backend)


def parse_backend(block: DictConfig | Mapping[str, Any]) -> BackendSettings:
    """The `backend` block of a composed configuration as settings.

    Raises ConfigurationError for an unknown key, and for one that has no effect.
    """
    values: Any = block
    if isinstance(block, DictConfig):
        try:
            values = OmegaConf.to_container(block, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            raise _explained(error) from error
    values = dict(values)
    if set(values) == {"backend"}:
        raise ConfigurationError(
            "the backend's settings are below 'backend' twice",
            why="a group's file is placed below the group's name, and this one begins with it, too",
            fix="add '# @package _global_' as its first line, or remove 'backend:'",
        )
    if (kind := values.get("type")) not in _KINDS:
        raise UnknownNameError("backend type", str(kind), _KINDS)
    return _parsed(_KINDS[kind], _checked(values), origin="backend")


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    calling = values.get("function_calling") or {}
    for name in (*values, *(f"function_calling.{name}" for name in calling)):
        if reason := _LEFT_OUT.get(name):
            raise ConfigurationError(
                f"backend.{name} has no effect here", why=reason, fix="leave it out"
            )
    _parsed(FunctionCalling, calling, origin="backend.function_calling")
    return values


def _parsed(kind: type[Settings], values: Mapping[str, Any], *, origin: str) -> Settings:
    try:
        return parse(kind, values, origin=origin)
    except ConfigurationError as error:
        error.fix = "the packaged files in agent_arena/configs/backend have every key"
        raise


def _explained(error: Exception) -> ConfigurationError:
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return UnknownNameError(group or "configuration", name, error.options)
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ConfigKeyError | ConfigAttributeError):
        cause = cause.__cause__
    if cause is not None and cause.parent_node is not None:
        known = [str(name) for name in cause.parent_node]
        close = nearest(str(cause.key), known)
        return ConfigurationError(
            f"unknown key {cause.full_key!r}",
            fix=f"did you mean {close!r}?" if close else f"known: {', '.join(sorted(known))}",
        )
    if isinstance(error, MissingMandatoryValue):
        return ConfigurationError(
            f"{error.full_key} has no value", fix=f"give one: {error.full_key}=…"
        )
    message, *rest = (line.strip() for line in str(error).splitlines() if line.strip())
    return ConfigurationError(message, why=" ".join(rest) or None)
