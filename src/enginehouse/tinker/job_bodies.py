"""The JSON bodies of a model's jobs, as the SDK sends them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from enginehouse.core.strict_model import StrictModel
from enginehouse.tinker.data import AdamStep, LoraSpec

SeqId = Annotated[int, Field(ge=0, lt=2**63)]
"""The number of a sampling session, or of a sample."""
JobId = Annotated[int, Field(ge=1, lt=2**63)]
"""The number of a job of its model; 0 is what made the model."""
Ttl = Annotated[int, Field(ge=3600, le=10 * 366 * 86400)]
_Count = Annotated[int, Field(ge=0, lt=2**31)]
_Decay = Annotated[float, Field(ge=0, lt=1)]
_NotNegative = Annotated[float, Field(ge=0)]


class LoraConfig(StrictModel):
    """The LoRA of a new model."""

    rank: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class Optimizer(StrictModel):
    """The optimizer of a new model; AdamW is the only one here."""

    type: Literal["adamw"] = "adamw"


class AdamParams(StrictModel):
    """The parameters of one step of AdamW."""

    learning_rate: _NotNegative = 1e-4
    beta1: _Decay = 0.9
    beta2: _Decay = 0.95
    eps: _NotNegative = 1e-12
    weight_decay: _NotNegative = 0.0
    grad_clip_norm: float = 0.0

    def step(self) -> AdamStep:
        """The step that the trainer takes; a norm of 0 or less means no clipping."""
        return AdamStep(
            learning_rate=self.learning_rate,
            beta1=self.beta1,
            beta2=self.beta2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            grad_clip_norm=max(0.0, self.grad_clip_norm),
        )


class CreateModel(StrictModel):
    """create_model."""

    session_id: str
    model_seq_id: _Count
    base_model: str
    user_metadata: dict[str, Any] | None = None
    lora_config: LoraConfig | None = None
    optimizer_config: Optimizer = Optimizer()
    type: Literal["create_model"] = "create_model"

    def spec(self, *, seed: int) -> LoraSpec:
        """The LoRA, with `seed` unless the request brings one. The rank is 32 as in the SDK."""
        config = self.lora_config or LoraConfig(rank=32)
        return LoraSpec(
            rank=config.rank,
            seed=seed if config.seed is None else config.seed,
            train_unembed=config.train_unembed,
            train_mlp=config.train_mlp,
            train_attn=config.train_attn,
        )


class LoadWeights(StrictModel):
    """load_weights: into a model that exists (model_id, seq_id), or into a new one."""

    path: str
    optimizer: bool
    model_id: str | None = None
    seq_id: JobId | None = None
    session_id: str | None = None
    model_seq_id: _Count | None = None
    base_model: str | None = None
    user_metadata: dict[str, Any] | None = None
    optimizer_config: Optimizer | None = None
    weights_access_token: str | None = None
    type: Literal["load_weights"] = "load_weights"


class OptimStep(StrictModel):
    """optim_step."""

    model_id: str
    seq_id: JobId
    adam_params: AdamParams = AdamParams()
    type: Literal["optim_step"] = "optim_step"


class SaveWeights(StrictModel):
    """save_weights."""

    model_id: str
    seq_id: JobId
    path: str | None = None
    ttl_seconds: Ttl | None = None
    overwrite: bool = False
    user_metadata: dict[str, str] | None = None
    type: Literal["save_weights"] = "save_weights"


class SaveWeightsForSampler(StrictModel):
    """save_weights_for_sampler: with a path, or for a new sampling session."""

    model_id: str
    seq_id: JobId
    path: str | None = None
    sampling_session_seq_id: _Count | None = None
    kind: Literal["snapshot", "inflight"] = "snapshot"
    ttl_seconds: Ttl | None = None
    user_metadata: dict[str, str] | None = None
    type: Literal["save_weights_for_sampler"] = "save_weights_for_sampler"


class SaveWeightsExternal(StrictModel):
    """save_weights_external."""

    model_id: str
    seq_id: JobId
    path: str
    ttl_seconds: Ttl | None = None
    age_encryption_recipients: list[str] | None = None
    type: Literal["save_weights_external"] = "save_weights_external"
