"""The losses and their slopes, in float64.

The formulas are those of the Tinker documentation ("Loss functions"), and what the service does
where that is silent; see payloads/trainer for the real ones.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.data import Datum

Floats = NDArray[np.float64]
LOSSES = (
    "cross_entropy",
    "importance_sampling",
    "ppo",
    "cispo",
    "dro",
    "gspo",
    "stable_reinforce",
)


def loss_of(
    name: str, datum: Datum, logprobs: Floats, config: Mapping[str, float | str]
) -> tuple[float, Floats]:
    """The sum of the loss over a sequence, and its derivative by the log-probabilities.

    `logprobs` are shaped as the datum's target_tokens. Raises TinkerError for inputs that the loss
    does not have or lacks.
    """
    if name == "cross_entropy":
        weights = _input(datum, "weights", logprobs)
        return float(-(weights * logprobs).sum()), -weights
    old = _input(datum, "logprobs", logprobs)
    advantages = _input(datum, "advantages", logprobs)
    ratio = np.exp(logprobs - old)
    low = float(config.get("clip_low_threshold", 0.0 if name == "cispo" else 0.8))
    high = float(config.get("clip_high_threshold", 4.0 if name == "cispo" else 1.2))
    if name == "importance_sampling":
        slope = -ratio * advantages
        return float(slope.sum()), slope
    if name == "ppo":
        return _clipped(ratio, advantages, low=low, high=high)
    if name == "gspo":
        mask = _input(datum, "sequence_ratio_mask", logprobs) != 0
        mean = (logprobs - old)[mask].mean() if mask.any() else 0.0
        whole = np.full_like(logprobs, np.exp(mean))
        return _clipped(whole, np.where(mask, advantages, 0), low=low, high=high)
    sampled = np.ones(logprobs.shape, bool)
    if name == "stable_reinforce":
        if datum.sampled is None:
            raise TinkerError("a datum does not say which of its tokens were sampled")
        sampled = datum.sampled
        weights, strength = np.minimum(ratio, 2.0) * advantages, config.get("kl_coeff", 0.0)
    elif name == "cispo":
        weights, strength = np.clip(ratio, low, high) * advantages, 0.0
    else:
        weights, strength = advantages, config.get("beta", 0.05)
    weights, gap = np.where(sampled, weights, 0), np.where(sampled, logprobs - old, 0)
    penalty = 0.5 * float(strength) * float((gap**2).sum())
    return float(-(weights * logprobs).sum()) + penalty, float(strength) * gap - weights


def _clipped(ratio: Floats, advantages: Floats, *, low: float, high: float) -> tuple[float, Floats]:
    """-Σ min(r·A, clip(r)·A), and its derivative by log r: none where the clipped one is less."""
    free, held = ratio * advantages, np.clip(ratio, low, high) * advantages
    return float(-np.minimum(free, held).sum()), np.where(free <= held, -free, 0.0)


def _input(datum: Datum, name: str, like: Floats) -> Floats:
    """One of the datum's tensors, which must be there, be finite, and have the targets' shape."""
    values = datum.inputs.get(name)
    if values is None:
        raise TinkerError(f"the loss needs {name}, which a datum lacks")
    if values.shape != like.shape:
        raise TinkerError(
            f"{name} has the shape {values.shape}, and target_tokens {like.shape}: they must agree"
        )
    if not np.isfinite(values).all():
        raise TinkerError(f"{name} holds NaN or infinity")
    return values.astype(np.float64)
