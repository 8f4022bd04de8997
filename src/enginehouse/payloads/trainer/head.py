"""The output layer: log-probabilities of the targets, and the gradient of a loss of them.

Logits take more memory than anything else: (positions, vocabulary) float32. They are computed a
chunk of positions at a time, and each chunk's gradient at once, so that no logits are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.batch import Batch
from trainer.lora import Factors, Group


@dataclass(frozen=True, eq=False, kw_only=True)
class _Chunk:
    """Positions `start` to `stop`: x (n, size), targets (n, K), log_softmax (n, vocabulary)."""

    start: int
    stop: int
    x: Tensor
    targets: Tensor
    log_softmax: Tensor
    parts: Sequence[tuple[Factors, slice]]


class Head:
    """A frozen output layer (vocabulary, size), with adapters on slices of the positions.

    `name` is its module's; `most_logits` bounds a chunk's, which has one position at least.
    """

    def __init__(self, layer: nn.Linear, *, name: str, most_logits: int) -> None:
        self.name = name
        self._weight, self._bias = layer.weight, layer.bias
        self._size = max(1, most_logits // self._weight.shape[0])

    def logprobs(self, hidden: Tensor, batch: Batch) -> Tensor:
        """The log-probabilities of the batch's targets, (n, K) float32; `hidden` is (n, size)."""
        parts = [
            chunk.log_softmax.gather(1, chunk.targets) for chunk in self._chunks(hidden, batch)
        ]
        return torch.cat(parts)

    def evaluate(self, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """As `logprobs`; evaluates the batch's losses, and adds to its adapters' gradients.

        Also returns the losses' gradient by `hidden`, which is zero for a forward pass.
        """
        logprobs = torch.empty(batch.targets.shape, dtype=torch.float32, device=hidden.device)
        by_hidden = torch.zeros_like(hidden)
        for chunk in self._chunks(hidden, batch):
            here = slice(chunk.start, chunk.stop)
            logprobs[here] = chunk.log_softmax.gather(1, chunk.targets)
            by_logprob = batch.evaluate(logprobs[here], chunk.start)
            if by_logprob is not None:
                by_hidden[here] = self._backward(chunk, by_logprob)
        return logprobs, by_hidden

    def _chunks(self, hidden: Tensor, batch: Batch) -> Iterator[_Chunk]:
        for start in range(0, len(hidden), self._size):
            stop = min(start + self._size, len(hidden))
            x = hidden[start:stop]
            parts = list(self._parts(batch.groups_of_positions, start, stop))
            logits = functional.linear(x, self._weight, self._bias)
            for factors, rows in parts:
                factors.add_to(logits[rows], x[rows])
            yield _Chunk(
                start=start,
                stop=stop,
                x=x,
                targets=batch.targets[start:stop],
                log_softmax=torch.log_softmax(logits, dim=-1, dtype=torch.float32),
                parts=parts,
            )

    def _parts(
        self, groups: Sequence[Group], start: int, stop: int
    ) -> Iterator[tuple[Factors, slice]]:
        for group in groups:
            first, last = max(group.start, start), min(group.stop, stop)
            if first < last and self.name in group.factors:
                yield group.factors[self.name], slice(first - start, last - start)

    def _backward(self, chunk: _Chunk, by_logprob: Tensor) -> Tensor:
        """The gradient by x. Overwrites the chunk's log_softmax.

        With p = softmax(z) and lp_k = log p[target_k], d(sum_k g_k lp_k)/dz is
        (sum_k g_k at target_k) - (sum_k g_k) p. Where g is zero, as in prompts, so is all of it.
        """
        matters = by_logprob.ne(0).any(dim=1)
        before = [0, *matters.cumsum(0).tolist()]
        x, targets, log_softmax = chunk.x, chunk.targets, chunk.log_softmax
        if before[-1] < len(x):
            x, targets, log_softmax = x[matters], targets[matters], log_softmax[matters]
            by_logprob = by_logprob[matters]
        by_logits = log_softmax.exp_().mul_(-by_logprob.sum(dim=1, keepdim=True))
        by_logits = by_logits.scatter_add_(1, targets, by_logprob).to(x.dtype)
        by_x = by_logits @ self._weight
        for factors, rows in chunk.parts:
            own = slice(before[rows.start], before[rows.stop])
            projected = x[own] @ factors.a.T
            factors.backward(by_logits[own], x[own], projected, into=by_x[own])
        if len(by_x) == len(chunk.x):
            return by_x
        by_all = torch.zeros_like(chunk.x)
        by_all[matters] = by_x
        return by_all
