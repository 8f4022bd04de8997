"""How to start a server, whatever the engine. Light: the command line reads it first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from enginehouse.core.strict_model import StrictModel

PositiveInt = Annotated[int, Field(ge=1)]
DType = Literal["auto", "bfloat16", "float16", "float32"]


class ServerOptions(StrictModel):
    """How to start a server; None means the engine's own default.

    `env_vars` is added to the child's environment, and so are the variables of our own that
    `env_names` names; `extra_args` is added to its command line (one string, split as a shell
    would, or a list).
    """

    host: str = "127.0.0.1"
    """The address to listen on; anything but loopback requires an API key."""
    command: str | None = None
    """The shell command that starts a generic server; HOST, PORT and others are set in its
    environment."""
    health_path: Annotated[str, Field(pattern=r"^/")] | None = None
    """The path where a generic server answers 200 once it is healthy; by default /health."""
    only_endpoint: Literal["chat", "completions"] | None = None
    """The only endpoint of a generic server: chat or completions."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """The port; by default a free one."""
    tensor_parallel_size: PositiveInt | None = None
    """GPUs that share each layer."""
    pipeline_parallel_size: PositiveInt | None = None
    """Groups of GPUs among which the layers are divided."""
    data_parallel_size: PositiveInt | None = None
    """Copies of the model."""
    dtype: DType | None = None
    """The number type: auto, bfloat16, float16 or float32; on a CPU, the fastest by default."""
    max_model_len: PositiveInt | None = None
    """The longest prompt and answer together, in tokens."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    """The fraction of a GPU's memory that the engine may take."""
    max_num_seqs: PositiveInt | None = None
    """Sequences that are generated at the same time."""
    max_num_batched_tokens: PositiveInt | None = None
    """Tokens processed in one step."""
    enable_prefix_caching: bool | None = None
    """Compute common beginnings of prompts only once."""
    enable_chunked_prefill: bool | None = None
    """Compute long prompts in pieces."""
    enforce_eager: bool | None = None
    """Skip compilation; on a CPU this is the default."""
    trust_remote_code: bool = False
    """Allow Python code that comes with the model to run."""
    enable_lora: bool = False
    """Allow LoRA adapters to be loaded."""
    enable_weight_swap: bool = False
    """Allow the weights to be replaced while the server runs (vLLM's development endpoints)."""
    max_loras: PositiveInt | None = None
    """LoRA adapters in one batch."""
    max_lora_rank: PositiveInt | None = None
    """The largest rank of a LoRA adapter."""
    served_model_name: str | None = None
    """The name that requests use."""
    api_key: Annotated[str | None, Field(repr=False)] = None
    """The key that requests must carry; also taken from ENGINEHOUSE_API_KEY."""
    env_vars: Mapping[str, str] = Field(default_factory=dict, repr=False)
    """Variables for the engine's environment (--env NAME=VALUE; --env NAME copies one of yours)."""
    env_names: tuple[str, ...] = ()
    """Variables to pass on from this process (--env NAME); their values are not stored."""
    avoid_quirks: bool = True
    """Avoid requests and options that crash this version of the engine or produce wrong answers."""
    extra_args: str | Sequence[str] = ()
    """Other flags of the engine, as one string or a list."""
