"""A batch that runs to completion, for models whose cache only they themselves understand.

Prompts are padded on the left. Rows that have ended are still computed, and none joins before all
have.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from hf_server.model import Model
from hf_server.prompts import Window
from hf_server.rows import Row, Sequence

_CACHES = ("past_key_values", "cache_params", "state")  # what models call theirs


class PaddedBatch:
    """Has SlotBatch's methods."""

    joins_any_time = False
    bytes_per_token = 0

    def __init__(self, model: Model) -> None:
        self.rows: list[Row] = []
        self.most_tokens: int | None = None
        self._model = model
        self._takes_positions = "position_ids" in inspect.signature(model.module.forward).parameters
        self._lines: list[int] = []
        self._adapters: list[str | None] = []
        self._mask = torch.zeros(0, 0, dtype=torch.long)
        self._cache: dict[str, Any] = {}

    @property
    def longest(self) -> int:
        """Places in use by every row."""
        return self._mask.shape[1] if self.rows else 0

    def fits(self, rows: int, longest: int) -> bool:  # noqa: ARG002
        """See SlotBatch; the size of these caches is unknown, so one batch always fits."""
        return True

    def prefill(self, sequences: list[Sequence]) -> Tensor:
        """See SlotBatch.prefill; a prompt of several rows is computed for each of them."""
        lines = [sequence for sequence in sequences for _ in sequence.rows]
        first = [at for at, line in enumerate(lines) if at == 0 or lines[at - 1] is not line]
        width = max(len(line.ids) for line in lines)
        offsets = [width - len(line.ids) for line in lines]
        device = self._model.device
        ids = torch.tensor([[0] * o + line.ids for o, line in zip(offsets, lines, strict=True)])
        mask = torch.tensor([[0] * o + [1] * (width - o) for o in offsets])
        self.rows = [row for sequence in sequences for row in sequence.rows]
        self._lines = list(range(len(lines)))
        self._adapters = [line.adapter for line in lines]
        self._mask, self._cache = mask.to(device), {}
        wanted = Window(sequences, start=0, end=width, offsets=[offsets[at] for at in first])
        # the window has one line for each prompt
        keep = torch.tensor(first)[wanted.keep // width] * width + wanted.keep % width
        return wanted.read(self._forward(ids.to(device), keep=keep))

    def decode(self) -> Tensor:
        """See SlotBatch.decode."""
        last = self._mask.new_zeros(len(self._mask), 1)
        last[self._lines, 0] = last.new_tensor([row.last for row in self.rows])
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
        return self._forward(last, keep=None)[self._lines]

    def _forward(self, ids: Tensor, *, keep: Tensor | None) -> Tensor:
        inputs = {"input_ids": ids, "attention_mask": self._mask, **self._cache}
        if not self._takes_positions and self._cache:
            del inputs["attention_mask"]  # a model with a state takes a mask for its prompt only
        if self._takes_positions:
            positions = (self._mask.cumsum(dim=-1) - 1).clamp_(min=0)
            inputs["position_ids"] = positions[:, -ids.shape[1] :]
        logits, output = self._model.forward(adapters=self._adapters, keep=keep, **inputs)
        found = {name: getattr(output, name, None) for name in _CACHES}
        self._cache = {name: cache for name, cache in found.items() if cache is not None}
        return logits

    def leave(self, row: Row) -> None:
        """See SlotBatch.leave; the row is still computed, but ignored."""
        at = self.rows.index(row)
        self.rows.pop(at)
        self._lines.pop(at)
        if not self.rows:
            self.clear()

    def clear(self) -> None:
        """See SlotBatch.clear."""
        self.rows, self._lines, self._cache = [], [], {}
