"""A batch that rows join and leave at any step; each row has a slot of a preallocated KV cache.

A row's keys and values lie at the beginning of its slot, so nothing is padded on the left, nothing
is concatenated, and attention reads views of the slots. Masks hide what lies behind a row's end.
Works for models whose layers are all plain full attention; others take padded.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, Cache

from hf_server.model import Model
from hf_server.prompts import Window
from hf_server.rows import Row, Sequence

ATTENTION = "enginehouse_slots"
_ROUND = 128  # a slot's length is a multiple of this


def attend(
    _module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention over what SlotCache.update returned; see transformers' AttentionInterface.

    Grouped queries of one new token are treated as query places of one head: repeating keys and
    values would cost more than attention itself.
    """
    rows, heads, length, size = query.shape
    groups = heads // key.shape[1]
    if length == 1 and groups > 1 and attention_mask is not None:
        folded = query.reshape(rows, key.shape[1], groups, size)
        out = scaled_dot_product_attention(
            folded, key, value, attn_mask=attention_mask, scale=scaling
        )
        return out.reshape(rows, 1, heads, value.shape[-1]), None
    out = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        scale=scaling,
        is_causal=attention_mask is None and length > 1,
        enable_gqa=groups > 1,
    )
    return out.transpose(1, 2), None


AttentionInterface.register(ATTENTION, attend)


class SlotCache(Cache):  # type: ignore[misc]
    """Keys and values of all layers, (slot, head, place, size) each.

    Before each forward pass `place` says where its new keys and values go.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.slots = 0
        self.length = 0
        self._stored: list[list[Tensor]] = []
        self._write: Any = None
        self._read: Any = None
        self._repeat: Tensor | None = None

    def place(self, write: Any, *, read: Any, repeat: Tensor | None = None) -> None:
        """Index of the new places and of those to attend to; read None is the new ones only.

        `repeat` says, for each slot written to, which row of the forward pass fills it.
        """
        self._write, self._read, self._repeat = write, read, repeat

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        """Never used: positions are always given."""
        return 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values, and return all that are to be attended to."""
        while len(self._stored) <= layer_idx:
            self._stored.append([self._blank(t) for t in (key_states, value_states)])
        seen = []
        for stored, new in zip(self._stored[layer_idx], (key_states, value_states), strict=True):
            filling = new if self._repeat is None else new[self._repeat]
            # advanced indexing of slot and place moves them to the front: (row, head, size)
            stored[self._write] = filling if isinstance(self._write[0], slice) else filling[:, :, 0]
            seen.append(new if self._read is None else stored[self._read])
        return seen[0], seen[1]

    def _blank(self, like: Tensor) -> Tensor:
        # Zeros: masked values are still multiplied by zero, and must not be NaN.
        return like.new_zeros(self.slots, like.shape[1], self.length, like.shape[3])

    def resize(self, slots: int, length: int, *, kept_slots: int, kept_length: int) -> None:
        """Change the capacity, keeping the first slots' first places. Layer by layer."""
        self.slots, self.length = slots, length
        for layer in self._stored:
            for which, old in enumerate(layer):
                layer[which] = self._blank(old)
                kept = old[:kept_slots, :, :kept_length]
                layer[which][:kept_slots, :, :kept_length] = kept

    def move(self, source: int, target: int, *, length: int) -> None:
        """Copy a slot's first places over another's."""
        for layer in self._stored:
            for stored in layer:
                stored[target, :, :length] = stored[source, :, :length]

    def drop(self) -> None:
        """Give the memory back."""
        self._stored = []
        self.slots = self.length = 0

    @property
    def bytes_per_token(self) -> int:
        """What one place of one slot takes, known after the first forward pass."""
        return sum(
            stored.shape[1] * stored.shape[3] * stored.element_size()
            for layer in self._stored
            for stored in layer
        )


class SlotBatch:
    """The rows being generated. Each method but `leave` is a forward pass, and blocks for it.

    `most_tokens` bounds slots times places.
    """

    joins_any_time = True

    def __init__(self, model: Model, *, most_rows: int, chunk: int) -> None:
        self.rows: list[Row] = []
        self.most_tokens: int | None = None
        self._model = model
        self._most_rows = most_rows
        self._chunk = chunk
        self._cache = SlotCache()
        self._lengths: list[int] = []

    @property
    def bytes_per_token(self) -> int:
        """See SlotCache."""
        return self._cache.bytes_per_token

    @property
    def longest(self) -> int:
        """Places in use by the longest row."""
        return max(self._lengths, default=0)

    def fits(self, rows: int, longest: int) -> bool:
        """Whether `rows` more rows of at most `longest` tokens fit into the cache's memory."""
        if self.most_tokens is None:
            return True
        return (len(self.rows) + rows) * max(longest, self.longest + 1) <= self.most_tokens

    def prefill(self, sequences: list[Sequence]) -> Tensor:
        """Compute prompts and let their rows join; logits (sequence, vocabulary) of their ends.

        One long prompt is computed in chunks. Fills in the sequences' scores.
        """
        widest = max(len(s.ids) for s in sequences)
        repeat = [at for at, s in enumerate(sequences) for _ in s.rows]
        self._reserve(len(self.rows) + len(repeat), widest)
        first = len(self.rows)
        index = None
        if len(repeat) != len(sequences):
            index = torch.tensor(repeat, device=self._model.device)
        step = widest if len(sequences) > 1 else self._chunk
        for start in range(0, widest, step):
            window = (start, min(start + step, widest))
            logits = self._compute(sequences, window, slots=(first, len(repeat)), repeat=index)
        for sequence in sequences:
            self.rows += sequence.rows
            self._lengths += [len(sequence.ids)] * len(sequence.rows)
        return logits

    def _compute(
        self,
        sequences: list[Sequence],
        window: tuple[int, int],
        *,
        slots: tuple[int, int],
        repeat: Tensor | None,
    ) -> Tensor:
        start, end = window
        device = self._model.device
        ids = torch.zeros(len(sequences), end - start, dtype=torch.long)
        for at, sequence in enumerate(sequences):
            part = sequence.ids[start:end]
            ids[at, : len(part)] = torch.tensor(part)
        first, count = slots
        read = mask = None
        if start:  # then there is one sequence
            read = (slice(first, first + 1), slice(None), slice(0, end))
            mask = torch.ones(end - start, end, dtype=torch.bool, device=device).tril(start)
            mask = mask[None, None]
        self._cache.place(
            (slice(first, first + count), slice(None), slice(start, end)), read=read, repeat=repeat
        )
        wanted = Window(sequences, start=start, end=end)
        logits, _ = self._model.forward(
            input_ids=ids.to(device),
            position_ids=torch.arange(start, end, device=device).expand_as(ids),
            attention_mask=mask,
            past_key_values=self._cache,
            adapters=[sequence.adapter for sequence in sequences],
            keep=wanted.keep,
        )
        return wanted.read(logits)

    def decode(self) -> Tensor:
        """Compute every row's last token; logits (row, vocabulary)."""
        model, device = self._model, self._model.device
        count, longest = len(self.rows), self.longest
        self._reserve(count, longest + 1)
        lengths = torch.tensor(self._lengths, device=device)
        slots = torch.arange(count, device=device)
        self._cache.place(
            (slots, slice(None), lengths),
            read=(slice(0, count), slice(None), slice(0, longest + 1)),
        )
        places = torch.arange(longest + 1, device=device)
        logits, _ = model.forward(
            input_ids=torch.tensor([[row.last] for row in self.rows], device=device),
            position_ids=lengths[:, None],
            attention_mask=(places <= lengths[:, None])[:, None, None],
            past_key_values=self._cache,
            adapters=[row.adapter for row in self.rows],
        )
        self._lengths = [length + 1 for length in self._lengths]
        return logits

    def leave(self, row: Row) -> None:
        """Take a row out; the last slot moves into the gap."""
        at = self.rows.index(row)
        last = len(self.rows) - 1
        if at != last:
            self._cache.move(last, at, length=self._lengths[last])
            self.rows[at], self._lengths[at] = self.rows[last], self._lengths[last]
        self.rows.pop()
        self._lengths.pop()

    def clear(self) -> None:
        """Take all rows out and give the cache's memory back."""
        self.rows, self._lengths = [], []
        self._cache.drop()

    def _reserve(self, rows: int, length: int) -> None:
        """Make room, with some to spare, and drop what is not needed now.

        Otherwise one long row, after many short ones, would take the memory of many long ones.
        """
        cache = self._cache
        if rows <= cache.slots and length <= cache.length:
            return
        slots = min(1 << (rows - 1).bit_length(), max(self._most_rows, rows))
        room = -(-(length + length // 4) // _ROUND) * _ROUND
        if self.most_tokens is not None and slots * room > self.most_tokens:
            slots, room = rows, length  # which was seen to fit
        cache.resize(slots, room, kept_slots=len(self.rows), kept_length=self.longest)
