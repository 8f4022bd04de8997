"""What is trained on, between the wire and the trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False, kw_only=True)
class Datum:
    """One sequence, already aligned: `inputs` at position i belong to the prediction after i.

    `tokens` is (N,) int32. `inputs` are the loss's tensors by name, each (N,) or (N, K), float32 or
    int64, exactly as they came over the wire; a sparse one has been made dense. `sampled` marks the
    (N,) positions whose targets a model sampled, where the request says so (its provenance spans).
    """

    tokens: NDArray[np.int32]
    inputs: Mapping[str, NDArray[Any]]
    sampled: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class LossRequest:
    """A forward pass over `data`, and with `backward` the gradients, added to those before.

    `loss` is a name such as "cross_entropy"; `config` its parameters, such as clip_low_threshold.
    """

    model_id: str
    loss: str
    data: tuple[Datum, ...]
    config: Mapping[str, float | str] = field(default_factory=dict)
    backward: bool = True

    @property
    def tokens(self) -> int:
        """How many positions are computed."""
        return sum(len(datum.tokens) for datum in self.data)


@dataclass(frozen=True, eq=False, kw_only=True)
class LossResult:
    """What a LossRequest gave: per datum its tensors by name, and metrics named name:reduction.

    Every loss gives `logprobs`, shaped as target_tokens, float32, and the metric loss:sum.
    """

    outputs: tuple[Mapping[str, NDArray[np.float32]], ...]
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """A LoRA to train, as the SDK's LoraConfig says it; `alpha` is not on the wire.

    `seed` None draws one. `train_unembed` adapts the output layer without altering the embeddings,
    also where both share their weights.
    """

    rank: int
    alpha: float = 32.0
    seed: int | None = None
    train_mlp: bool = True
    train_attn: bool = True
    train_unembed: bool = True


@dataclass(frozen=True, kw_only=True)
class AdamStep:
    """One step of AdamW: decoupled weight decay, bias correction, and clipping of the global norm.

    `grad_clip_norm` 0 is off. The defaults are those of the SDK's AdamParams.
    """

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0
