"""One LoRA adapter in training: its weights, gradients and optimizer, all float32."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from trainer.data import AdamStep, LoraSpec
from trainer.errors import RequestError
from trainer.lora import Factors

_PART = 1 << 16  # numbers that are summed at once


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a module's A (rank, inputs) and B (outputs, rank) lie in an adapter's flat tensors."""

    inputs: int
    outputs: int
    start: int


class Adapter:
    """All weights lie in one flat tensor, and so do their gradients and Adam's moments.

    `gradient` is None until one was computed since the last step, the moments until the first step.
    """

    def __init__(
        self, spec: LoraSpec, shapes: Mapping[str, tuple[int, int]], *, device: torch.device
    ) -> None:
        """`shapes` are (inputs, outputs) by module. A and B are zero: see `initialise`."""
        self.spec = spec
        self.places: dict[str, Place] = {}
        size = 0
        for module, (inputs, outputs) in shapes.items():
            self.places[module] = Place(inputs=inputs, outputs=outputs, start=size)
            size += spec.rank * (inputs + outputs)
        self.weights = torch.zeros(size, device=device)
        self.gradient: Tensor | None = None
        self.moments: tuple[Tensor, Tensor] | None = None
        self.steps = 0

    def initialise(self) -> None:
        """Draw A as PEFT does (kaiming_uniform with a = √5, which is ±1/√inputs); B stays zero.

        The same seed draws the same numbers on every device.
        """
        assert self.spec.seed is not None
        generator = torch.Generator().manual_seed(self.spec.seed)
        for a, _ in self.views(self.weights).values():
            drawn = torch.empty(a.shape).uniform_(-1.0, 1.0, generator=generator)
            a.copy_(drawn / math.sqrt(a.shape[1]))

    def views(self, flat: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """A and B by module, as views of a flat tensor laid out like the weights."""
        rank, views = self.spec.rank, {}
        for module, place in self.places.items():
            middle = place.start + rank * place.inputs
            end = middle + rank * place.outputs
            a, b = flat[place.start : middle], flat[middle:end]
            views[module] = (a.view(rank, place.inputs), b.view(place.outputs, rank))
        return views

    def add(self, gradient: Tensor) -> None:
        """Add to the gradients since the last step; takes `gradient` over."""
        self.gradient = gradient if self.gradient is None else self.gradient.add_(gradient)

    def optimise(self, step: AdamStep) -> float:
        """Apply and clear the gradients, as torch.optim.AdamW does. Returns their norm.

        The norm, of all parameters, is that before clipping. Raises RequestError without gradients,
        or if they are not finite, which drops them, or for a step that is not.
        """
        if not all(map(math.isfinite, astuple(step))):
            raise RequestError(f"the optimizer's parameters must be finite: {step}")
        if self.gradient is None:
            raise RequestError(
                "there are no gradients to apply: call forward_backward before optim_step"
            )
        gradient, self.gradient = self.gradient, None
        norm = _norm(gradient)
        if not math.isfinite(norm):
            raise RequestError(
                "the gradients are not finite, and were dropped: check the advantages and weights "
                "for extreme values, or load an earlier checkpoint if the training has diverged"
            )
        if step.grad_clip_norm > 0:  # as torch.nn.utils.clip_grad_norm_
            gradient *= min(1.0, step.grad_clip_norm / (norm + 1e-6))
        if self.moments is None:
            self.moments = (torch.zeros_like(self.weights), torch.zeros_like(self.weights))
        mean, square = self.moments
        adamw(
            [self.weights],
            [gradient],
            [mean],
            [square],
            [],
            [torch.tensor(float(self.steps), device=self.weights.device)],
            fused=True,  # one pass over memory instead of ten
            amsgrad=False,
            maximize=False,
            lr=step.learning_rate,
            beta1=step.beta1,
            beta2=step.beta2,
            eps=step.eps,
            weight_decay=step.weight_decay,
        )
        self.steps += 1
        return norm


class Workspace:
    """An adapter in the passes that are computed now, whatever number of requests they are for.

    `factors` are what the layers need: its weights in `dtype`, and `gradient` to add to. That is
    apart from the adapter's own, so that it can be thrown away; None if no gradients are wanted.
    """

    def __init__(self, adapter: Adapter, *, dtype: torch.dtype, backward: bool) -> None:
        self.gradient = torch.zeros_like(adapter.weights) if backward else None
        scaling = adapter.spec.alpha / adapter.spec.rank
        gradients = {} if self.gradient is None else adapter.views(self.gradient)
        self.factors = {
            module: Factors(
                a=a,
                b=b,
                scaling=scaling,
                gradient_a=gradients[module][0] if gradients else None,
                gradient_b=gradients[module][1] if gradients else None,
            )
            for module, (a, b) in adapter.views(adapter.weights.to(dtype)).items()
        }

    def clear(self) -> None:
        """Begin again without gradients."""
        if self.gradient is not None:
            self.gradient.zero_()


def _norm(flat: Tensor) -> float:
    """The norm, by parts: one float32 sum over millions of squares is wrong in its fourth digit."""
    parts = [torch.linalg.vector_norm(part) for part in flat.split(_PART)]
    return float(torch.linalg.vector_norm(torch.stack(parts)))


def named(views: Mapping[str, tuple[Tensor, Tensor]]) -> Iterable[tuple[str, Tensor]]:
    """A and B under the names that PEFT gives them in a file."""
    for module, (a, b) in views.items():
        yield f"base_model.model.{module}.lora_A.weight", a
        yield f"base_model.model.{module}.lora_B.weight", b
