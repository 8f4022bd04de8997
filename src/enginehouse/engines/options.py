"""How to start a server of any engine. Imports little: the command line reads it first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from enginehouse.core.strict_model import StrictModel

PositiveInt = Annotated[int, Field(ge=1)]
DType = Literal["auto", "bfloat16", "float16", "float32"]


class ServerOptions(StrictModel):
    """How to start a server; None leaves the engine's own default.

    `env_vars` is added to the child's environment, `extra_args` to its command line (one string,
    split as a shell would, or a list).
    """

    host: str = "127.0.0.1"
    """The address to listen on; an API key is required unless it is loopback."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """The port; by default a free one is leased."""
    tensor_parallel_size: PositiveInt | None = None
    """GPUs that share each layer."""
    pipeline_parallel_size: PositiveInt | None = None
    """Groups of GPUs that the layers are divided among."""
    data_parallel_size: PositiveInt | None = None
    """Copies of the model."""
    dtype: DType | None = None
    """The type to compute in: auto, bfloat16, float16, float32; on a CPU the fastest by default."""
    max_model_len: PositiveInt | None = None
    """The longest prompt and answer together, in tokens."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    """The fraction of a GPU's memory that the engine may take."""
    max_num_seqs: PositiveInt | None = None
    """Sequences that are generated at once."""
    max_num_batched_tokens: PositiveInt | None = None
    """Tokens that one step computes."""
    enable_prefix_caching: bool | None = None
    """Whether shared beginnings of prompts are computed only once."""
    enable_chunked_prefill: bool | None = None
    """Whether long prompts are computed in pieces."""
    enforce_eager: bool | None = None
    """Whether compilation is skipped; on a CPU it is by default."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run."""
    enable_lora: bool = False
    """Whether LoRA adapters can be loaded."""
    enable_weight_swap: bool = False
    """Whether the weights can be replaced while the server runs (vLLM's development endpoints)."""
    max_loras: PositiveInt | None = None
    """LoRA adapters in one batch."""
    max_lora_rank: PositiveInt | None = None
    """The largest rank of a LoRA adapter."""
    served_model_name: str | None = None
    """The name that requests use."""
    api_key: Annotated[str | None, Field(repr=False)] = None
    """The key that requests must carry; also taken from ENGINEHOUSE_API_KEY."""
    env_vars: Mapping[str, str] = Field(default_factory=dict, repr=False)
    """Variables added to the engine's environment (--env NAME=VALUE)."""
    avoid_quirks: bool = True
    """Whether what is known to kill this version of the engine is avoided."""
    extra_args: str | Sequence[str] = ()
    """Further flags of the engine, in one string or a list."""
