"""Linear layers whose rows belong to different LoRA adapters.

A batch is sorted by adapter, so that each adapter's rows are a slice: it is multiplied by that
adapter's A and B, of whatever rank, and an adapter without the module costs nothing. Gradients of A
and B are added to the adapter's own buffers in the backward pass, not by autograd: nothing is
allocated for them, and the frozen weights get none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, eq=False, kw_only=True)
class Factors:
    """An adapter's part in one module: y = x Wᵀ + scaling (x Aᵀ) Bᵀ.

    `a` is (rank, inputs) and `b` (outputs, rank), in the base model's type. The gradients are
    float32 of the same shapes, and None if none are wanted.
    """

    a: Tensor
    b: Tensor
    scaling: float
    gradient_a: Tensor | None = None
    gradient_b: Tensor | None = None

    def add_to(self, out: Tensor, x: Tensor) -> Tensor:
        """Add the adapter's part to `out` (rows, outputs) in place. Returns x Aᵀ."""
        projected = x @ self.a.T
        out.addmm_(projected, self.b.T, alpha=self.scaling)
        return projected

    def backward(
        self, gradient: Tensor, x: Tensor, projected: Tensor, *, into: Tensor | None
    ) -> None:
        """Add to the gradients of a and b, and to that of x, `into` (rows, inputs), if wanted."""
        inner = gradient @ self.b
        inner *= self.scaling
        if into is not None:
            into.addmm_(inner, self.a)
        assert self.gradient_a is not None
        assert self.gradient_b is not None
        _accumulate(self.gradient_a, inner.T, x)
        _accumulate(self.gradient_b, gradient.T, projected, alpha=self.scaling)


def _accumulate(total: Tensor, left: Tensor, right: Tensor, *, alpha: float = 1.0) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right, alpha=alpha)
    else:
        total.add_(left @ right, alpha=alpha)


@dataclass(frozen=True, eq=False, kw_only=True)
class Group:
    """Rows `start` to `stop` of a batch, and their adapter's factors by module."""

    factors: Mapping[str, Factors]
    start: int
    stop: int


@dataclass(eq=False)
class Routing:
    """Which rows belong to which adapter in the pass that is being computed."""

    groups: Sequence[Group] = field(default=())


@dataclass(frozen=True, eq=False)
class _Part:
    factors: Factors
    start: int
    stop: int


class LoraLinear(nn.Module):
    """A frozen linear layer that adds to each row what its adapter says. Input is (rows, …, in)."""

    def __init__(self, base: nn.Linear, *, name: str, routing: Routing) -> None:
        super().__init__()
        self.base = base
        self._name = name
        self._routing = routing
        # Autograd must come here also where the input, an embedding, needs no gradient.
        self._anchor = torch.zeros((), requires_grad=True)

    def forward(self, x: Tensor) -> Tensor:
        """As the layer itself, if no row's adapter has it."""
        parts = [
            _Part(group.factors[self._name], group.start, group.stop)
            for group in self._routing.groups
            if self._name in group.factors
        ]
        if not parts:
            return self.base(x)
        return _Adapted.apply(x, self.base.weight, self.base.bias, self._anchor, parts)


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, _: Tensor, parts: list[_Part]
    ) -> Tensor:
        out = functional.linear(x, weight, bias)
        projected = [
            part.factors.add_to(
                out[part.start : part.stop].view(-1, out.shape[-1]),
                x[part.start : part.stop].reshape(-1, x.shape[-1]),
            )
            for part in parts
        ]
        ctx.save_for_backward(x, weight, *projected)
        ctx.parts = parts
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        x, weight, *projected = ctx.saved_tensors
        into = gradient @ weight if ctx.needs_input_grad[0] else None
        for part, inner in zip(ctx.parts, projected, strict=True):
            rows = slice(part.start, part.stop)
            part.factors.backward(
                gradient[rows].reshape(-1, gradient.shape[-1]),
                x[rows].reshape(-1, x.shape[-1]),
                inner,
                into=None if into is None else into[rows].view(-1, x.shape[-1]),
            )
        return into, None, None, None, None
