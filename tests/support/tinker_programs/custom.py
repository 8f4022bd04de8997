"""A loss of the user's own, computed here in two steps, beside the service's cross_entropy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lessons import LEARNING_RATE, answer, arguments, lessons, logprobs

import tinker
from tinker import types

given = arguments()
data = lessons(given["model"])[:4]


def cross_entropy(
    asked: list[types.Datum], given: list[torch.Tensor]
) -> tuple[torch.Tensor, dict[str, float]]:
    """The same sum, over all sequences."""
    terms = [
        (datum.loss_fn_inputs["weights"].to_torch() * one).sum()
        for datum, one in zip(asked, given, strict=True)
    ]
    loss = -torch.stack(terms).sum()
    return loss, {"mine": float(loss)}


def train(
    compute: Callable[[tinker.TrainingClient], Any], *, metric: str
) -> dict[str, list[float] | list[list[float]]]:
    """The loss of each step, and the log-probabilities after the last."""
    losses = []
    with tinker.ServiceClient() as service:
        client = service.create_lora_training_client(
            base_model=given["model"], rank=8, seed=6
        ).result()
        for _ in range(given["steps"]):
            computed = compute(client)
            stepped = client.optim_step(types.AdamParams(learning_rate=LEARNING_RATE))
            losses.append(computed.result().metrics[metric])
            stepped.result()
        last = client.forward(data, loss_fn="cross_entropy").result()
    return {"losses": losses, "last": logprobs(last)}


answer(
    theirs=train(lambda client: client.forward_backward(data, "cross_entropy"), metric="loss:sum"),
    custom=train(lambda client: client.forward_backward_custom(data, cross_entropy), metric="mine"),
)
