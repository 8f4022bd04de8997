"""A backend's configuration: a model, how to ask it, and how its engine serves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.sampling import SamplingParameters
from enginehouse.deployment.configuration import ServeConfig, merged, parse

_LOAD_MODES = {  # of use_mmap and use_mlock
    (True, False): None,  # the default: mapped if the device supports it
    (True, True): "mmap+mlock",
    (False, True): "mlock",
    (False, False): "none",
}


@dataclass(frozen=True)
class BackendConfig:
    """A model and how to ask it. `n_gpu_layers` -1 is all; `function_calling` allows tools.

    Raises ConfigurationError for invalid values.
    """

    model_path: str
    temperature: float = field(default=0.7, kw_only=True)
    max_tokens: int = field(default=512, kw_only=True)
    top_p: float = field(default=0.9, kw_only=True)
    top_k: int = field(default=40, kw_only=True)
    n_gpu_layers: int = field(default=0, kw_only=True)
    function_calling: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        self.parameters()

    def parameters(self) -> SamplingParameters:
        """These settings as sampling parameters."""
        return SamplingParameters(
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            top_p=self.top_p,
            top_k=self.top_k,
        )

    def require_no_gpu_layers(self, engine: str) -> None:
        """Raise ConfigurationError if `n_gpu_layers` is set for an engine without that option."""
        if self.n_gpu_layers != 0:
            raise ConfigurationError(
                f"n_gpu_layers has no effect on {engine}: it computes all layers in one place",
                fix="leave it out; only LlamaCppBackend has it",
            )


@dataclass(frozen=True)
class VLLMBackendConfig(BackendConfig):
    """A model, or a LoRA adapter, of the vLLM server at `api_base`."""

    api_base: str = field(default="http://localhost:8000/v1", kw_only=True)
    api_key: str = field(default="EMPTY", kw_only=True, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_no_gpu_layers("vLLM")


@dataclass(frozen=True)
class LlamaCppBackendConfig(BackendConfig):
    """A GGUF file and how llama.cpp serves it; None means llama.cpp's own default.

    `n_parallel` prompts are answered at the same time, each with up to `n_ctx` tokens.
    """

    n_ctx: int = field(default=4096, kw_only=True)
    n_parallel: int = field(default=1, kw_only=True)
    n_batch: int | None = field(default=None, kw_only=True)
    n_threads: int | None = field(default=None, kw_only=True)
    repeat_penalty: float = field(default=1.0, kw_only=True)
    use_mmap: bool = field(default=True, kw_only=True)
    use_mlock: bool = field(default=False, kw_only=True)

    def parameters(self) -> SamplingParameters:
        """These settings as sampling parameters."""
        return msgspec.structs.replace(super().parameters(), repetition_penalty=self.repeat_penalty)

    def serving(self) -> ServeConfig:
        """The server to start."""
        flags = ["--gpu-layers", "all" if self.n_gpu_layers == -1 else str(self.n_gpu_layers)]
        flags += ["--threads", str(self.n_threads)] if self.n_threads else []
        if (mode := _LOAD_MODES[self.use_mmap, self.use_mlock]) is not None:
            flags += ["--load-mode", mode]
        server = {
            "max_model_len": self.n_ctx,
            "max_num_seqs": self.n_parallel,
            "max_num_batched_tokens": self.n_batch,
            "extra_args": flags,
        }
        return _serve_config(self.model_path, "llamacpp", server)


@dataclass(frozen=True)
class HFBackendConfig(BackendConfig):
    """A checkpoint and how Hugging Face Transformers serves it."""

    dtype: str | None = field(default=None, kw_only=True)
    max_model_len: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_no_gpu_layers("Hugging Face Transformers")

    def serving(self) -> ServeConfig:
        """The server to start."""
        server = {"dtype": self.dtype, "max_model_len": self.max_model_len}
        return _serve_config(self.model_path, "hf", server)


def _serve_config(model: str, engine: str, server: Mapping[str, Any]) -> ServeConfig:
    values = merged({}, {"model": model, "engine": engine, "server": merged({}, server)})
    return parse(ServeConfig, values, origin="the backend's configuration")
