"""What an operator may configure about the Tinker service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.strict_model import Fraction, StrictModel
from enginehouse.store.layout import Layout

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class TinkerConfig(StrictModel):
    """A base model, what trains and samples its adapters, and the limits of each user."""

    base_model: str | None = None
    """The model whose adapters are trained: a Hugging Face handle, a checkpoint folder, or a
    bundled name (smollm2)."""
    trainer: Literal["hf", "megatron"] = "hf"
    """What trains: our own multi-LoRA trainer (hf), or the server at megatron_url."""
    sampler: Literal["vllm", "hf", "megatron"] | None = None
    """What samples; by default vLLM, or hf where vLLM cannot run here."""
    megatron_url: str | None = None
    """The base URL of the Megatron server, for the trainer or the sampler of that name."""
    vllm_url: str | None = None
    """The base URL of a running vLLM with runtime LoRA updates; by default one is started."""
    host: str = "127.0.0.1"
    """The address to listen on."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """The port; by default a free one."""
    home: Path | None = None
    """The folder of records, accepted jobs, checkpoints and keys; by default below the state."""
    database: str | None = None
    """The URL of the database (sqlite:///… or postgresql://…); by default a file in home."""
    keys_file: Path | None = None
    """A file of API keys beside those of `tinker keys`: a line user=key, or user=sha256:DIGEST."""
    train_unembed: bool = True
    """Train the output layer of adapters that ask for it, as the SDK does by default."""
    logprobs: Literal["raw", "scaled"] = "raw"
    """Whether sampled log-probabilities are the model's own (raw), as the tinker-cookbook expects,
    or of the distribution that was sampled from, divided by the temperature (scaled)."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """The type of the base weights; by default the stored one on a GPU, the fastest on a CPU."""
    device: Literal["cpu", "cuda"] | None = None
    """Where the trainer computes; by default on a GPU if there is one."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    """The fraction of a GPU's memory that the sampling engine may take."""
    max_model_len: Positive | None = None
    """The longest sequence, prompt and continuation together, in tokens."""
    max_loras: Positive = 8
    """LoRA adapters that the sampling engine holds at once."""
    max_lora_rank: Positive = 64
    """The largest rank of an adapter that may be trained."""
    max_body_mb: Positive = 64
    """The largest body of a request, in millions of bytes."""
    max_batch_tokens: Positive = 1_000_000
    """The most tokens of one forward_backward request."""
    max_adapters: Positive = 64
    """The most models that one user may be training at the same time."""
    max_resident: Positive = 16
    """The most models in the trainer's memory; the others wait on the disk until their next job."""
    max_queued_jobs: Positive = 4096
    """The most training jobs of one user that wait; more are answered with 429."""
    max_samples: Positive = 128
    """The most sequences of one user in the sampling engine; the other samples wait their turn."""
    max_queued_samples: Positive = 8192
    """The most samples of one user that wait; more are answered with 429."""
    samples_in_flight: Positive = 256
    """The most sequences of all users in the sampling engine."""
    kl_threshold: Fraction = 0.05
    """The |v1| or v2 of sampled and trained log-probabilities above which a warning is given."""
    heartbeat_timeout: Seconds = 300.0
    """Seconds without a heartbeat after which the waiting samples of a session are cancelled."""
    snapshot_ttl: Annotated[int, Field(ge=3600)] | None = None
    """Seconds that weights live which were saved for a sampler without a name; by default they
    outlive their session by an hour. Named checkpoints live until their owner says otherwise."""
    drain_timeout: Seconds = 60.0
    """The longest time at the end that running jobs may take before they are left for the next
    start, in seconds."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.base_model is None:
            raise ValueError("give the base model whose adapters are to be trained: base_model")
        if "megatron" in {self.trainer, self.sampler} and self.megatron_url is None:
            raise ValueError(
                "megatron needs the address of its server: megatron_url (or MEGATRON_SERVER_URL)"
            )
        if self.vllm_url is not None and self.sampler in {"hf", "megatron"}:
            raise ValueError(f"vllm_url is without effect with the sampler {self.sampler}")
        return self

    @property
    def largest_body(self) -> int:
        """The largest body of a request, in bytes."""
        return self.max_body_mb * 1_000_000

    def computing_in(self, dtype: str) -> Self:
        """The same, with `dtype` if it is open: samples are computed as they are trained."""
        if self.dtype is not None or dtype not in {"float32", "bfloat16"}:
            return self
        return self.model_copy(update={"dtype": dtype})

    def folder(self, layout: Layout) -> Path:
        """The home, as an absolute path."""
        return (self.home or layout.tinker).expanduser().absolute()


@dataclass(frozen=True)
class Chosen:
    """Values of a TinkerConfig, and what to tell the operator about where some came from."""

    values: dict[str, Any]
    notes: tuple[str, ...]


def with_variables(values: Mapping[str, Any], environment: Mapping[str, str]) -> Chosen:
    """`values` with what Tink's environment variables choose where a key was not given.

    USE_MEGATRON and USE_VLLM choose trainer and sampler as in Tink's table: without vLLM, the
    trainer's own kind samples. Raises ConfigurationError for a value that is not understood.
    """
    chosen = dict(values)
    notes: list[str] = []

    def choose(key: str, value: Any, because: str) -> None:
        if value and chosen.get(key) is None:
            chosen[key] = value
            notes.append(
                f"{key} is {value}, because {because}; --{key.replace('_', '-')} overrides"
            )

    megatron = _switch(environment, "USE_MEGATRON")
    vllm = _switch(environment, "USE_VLLM")
    if megatron is not None:
        choose("trainer", "megatron" if megatron else "hf", f"USE_MEGATRON is {_word(megatron)}")
    if vllm is not None:
        own = "megatron" if chosen.get("trainer") == "megatron" else "hf"
        choose("sampler", "vllm" if vllm else own, f"USE_VLLM is {_word(vllm)}")
    if "megatron" in {chosen.get("trainer"), chosen.get("sampler")}:
        choose("megatron_url", environment.get("MEGATRON_SERVER_URL"), "MEGATRON_SERVER_URL is set")
    if chosen.get("sampler") in {None, "vllm"}:
        choose("vllm_url", environment.get("VLLM_BASE_URL"), "VLLM_BASE_URL is set")
        if _switch(environment, "VLLM_ENABLE_LORA") is False:
            raise ConfigurationError(
                "VLLM_ENABLE_LORA is false, but vLLM is to sample from LoRA adapters",
                fix="unset VLLM_ENABLE_LORA, or choose --sampler hf",
            )
        choose("max_loras", environment.get("VLLM_MAX_LORAS"), "VLLM_MAX_LORAS is set")
        choose("max_lora_rank", environment.get("VLLM_MAX_LORA_RANK"), "VLLM_MAX_LORA_RANK is set")
    return Chosen(chosen, tuple(notes))


def _switch(environment: Mapping[str, str], name: str) -> bool | None:
    value = environment.get(name, "").strip().lower()
    if not value:
        return None
    if value in {"1", "true", "yes", "on"}:
        return True
    if value in {"0", "false", "no", "off"}:
        return False
    raise ConfigurationError(
        f"{name} is {environment[name]!r}, which is neither true nor false",
        fix=f"set {name} to true or false, or unset it",
    )


def _word(switch: bool) -> str:  # noqa: FBT001 (the value itself)
    return "true" if switch else "false"
