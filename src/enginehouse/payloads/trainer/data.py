"""What goes in and out: the fields of enginehouse.tinker.data, which cannot be imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False, kw_only=True)
class Datum:
    """One sequence, already aligned: `inputs` at position i belong to the prediction after i.

    `tokens` is (N,) int32; `inputs` are (N,) or (N, K); `sampled` is (N,), true where a model
    sampled the target.
    """

    tokens: NDArray[np.int32]
    inputs: Mapping[str, NDArray[Any]]
    sampled: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class LossRequest:
    """A forward pass over `data`, and with `backward` the gradients, added to those before."""

    model_id: str
    loss: str
    data: tuple[Datum, ...]
    config: Mapping[str, float | str] = field(default_factory=dict)
    backward: bool = True


@dataclass(frozen=True, eq=False, kw_only=True)
class LossResult:
    """Per datum its `logprobs`, shaped as its target_tokens, float32; and the metric loss:sum."""

    outputs: tuple[Mapping[str, NDArray[np.float32]], ...]
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """A LoRA to train; its `seed` None draws one."""

    rank: int
    alpha: float = 32.0
    seed: int | None = None
    train_mlp: bool = True
    train_attn: bool = True
    train_unembed: bool = True


@dataclass(frozen=True, kw_only=True)
class AdamStep:
    """One step of AdamW; `grad_clip_norm` 0 is off."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0
