"""A request, checked: its numbers as they are computed, and the results so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.adapter import Adapter
from trainer.data import Datum, LossRequest, LossResult
from trainer.errors import RequestError
from trainer.losses import LOSSES, Loss

TARGETS = "target_tokens"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the model takes: token ids below `vocabulary`, sequences up to `length`."""

    vocabulary: int
    length: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Row:
    """A datum: tokens (N,) int64, targets (N, K) int64, and the loss's inputs, (N, K) float32."""

    tokens: Tensor
    targets: Tensor
    inputs: Mapping[str, Tensor]
    shape: tuple[int, ...]


class Job:
    """A request for one adapter, and what was computed of it.

    Raises RequestError if it cannot be computed.
    """

    def __init__(self, request: LossRequest, adapter: Adapter, *, limits: Limits) -> None:
        if request.loss not in LOSSES:
            raise RequestError(
                f"the loss {request.loss!r} is not known; there are {', '.join(sorted(LOSSES))}"
            )
        if not request.data:
            raise RequestError("the request has no data: give it one datum at least")
        self.loss = LOSSES[request.loss]
        self.backward = request.backward
        self.adapter = adapter
        self.config = _config(request, self.loss)
        self.rows = [
            _row(datum, self.loss, limits=limits, where=f"datum {number} of {request.loss}")
            for number, datum in enumerate(request.data)
        ]
        self.logprobs: list[NDArray[np.float32] | None] = []
        self._totals: list[Tensor] = []

    def begin(self) -> None:
        """Start computing, or start again."""
        self.logprobs = [None] * len(self.rows)
        self._totals = []

    def evaluate(self, lp: Tensor, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Add positions to the loss. Returns its gradient by lp, None for a forward pass."""
        total, gradient = self.loss.evaluate(lp, inputs, self.config, backward=self.backward)
        self._totals.append(total.double())
        return gradient

    def result(self) -> LossResult | RequestError:
        """What was computed; an error if that is NaN or infinity."""
        total = float(sum(self._totals))
        outputs = [array for array in self.logprobs if array is not None]
        if not (math.isfinite(total) and all(np.isfinite(array).all() for array in outputs)):
            return RequestError(
                f"the loss is {total}: check logprobs, advantages and weights for extreme values, "
                "or load an earlier checkpoint if the training has diverged"
            )
        return LossResult(
            outputs=tuple({"logprobs": array} for array in outputs), metrics={"loss:sum": total}
        )


def _config(request: LossRequest, loss: Loss) -> dict[str, float]:
    config = dict(loss.config)
    for name, value in request.config.items():
        if name not in config:
            known = f"; it has {', '.join(config)}" if config else ""
            raise RequestError(f"{request.loss} has no parameter {name!r}{known}")
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise RequestError(f"{request.loss}: {name} is {value!r}, not a finite number")
        config[name] = float(value)
    if config.get("clip_low_threshold", 0.0) > config.get("clip_high_threshold", math.inf):
        raise RequestError(
            f"{request.loss}: clip_low_threshold {config['clip_low_threshold']:g} is above "
            f"clip_high_threshold {config['clip_high_threshold']:g}; both are ratios, such as 0.8 "
            "and 1.2"
        )
    return config


def _row(datum: Datum, loss: Loss, *, limits: Limits, where: str) -> Row:
    count = len(datum.tokens)
    if not 0 < count <= limits.length:
        raise RequestError(
            f"{where} has {count} tokens, and the model takes 1 to {limits.length}: shorten it"
        )
    _require_tokens(datum.tokens, limits, f"{where}: the model input")
    expected = {TARGETS, *loss.inputs}
    if datum.inputs.keys() != expected:
        given = ", ".join(sorted(datum.inputs)) or "none"
        raise RequestError(
            f"{where} must have the inputs {', '.join(sorted(expected))}; it has {given}"
        )
    targets = datum.inputs[TARGETS]
    if targets.ndim not in ({1, 2} if loss.several_targets else {1}) or 0 in targets.shape:
        raise RequestError(f"{where}: target_tokens has the shape {targets.shape}, not ({count},)")
    for name, array in datum.inputs.items():
        if array.shape != (count, *targets.shape[1:]):
            raise RequestError(
                f"{where}: {name} has the shape {array.shape}, and should have "
                f"{(count, *targets.shape[1:])}, as there are {count} tokens"
            )
        if not np.isfinite(array).all():
            raise RequestError(f"{where}: {name} holds NaN or infinity")
    if targets.dtype.kind not in "iu":
        raise RequestError(f"{where}: target_tokens are {targets.dtype}, not integers")
    _require_tokens(targets, limits, f"{where}: target_tokens")
    inputs = {name: _column(datum.inputs[name], torch.float32) for name in loss.inputs}
    if loss.spans:
        if datum.sampled is None or datum.sampled.shape != (count,):
            raise RequestError(
                f"{where} does not say which tokens were sampled: give it the spans of its sampled "
                "sequences (with_sampled_provenance in the cookbook)"
            )
        inputs["sampled"] = _column(datum.sampled, torch.float32)
    return Row(
        tokens=torch.tensor(datum.tokens, dtype=torch.int64),
        targets=_column(targets, torch.int64),
        inputs=inputs,
        shape=targets.shape,
    )


def _require_tokens(tokens: NDArray[np.integer], limits: Limits, what: str) -> None:
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= limits.vocabulary:
        wrong = low if low < 0 else high
        raise RequestError(
            f"{what} holds the token id {wrong}, and the model's ids are 0 to "
            f"{limits.vocabulary - 1}: use the tokenizer of the base model"
        )


def _column(array: NDArray[np.generic], dtype: torch.dtype) -> Tensor:
    return torch.tensor(array, dtype=dtype).view(len(array), -1)
