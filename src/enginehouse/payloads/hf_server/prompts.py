"""Which places of computed prompts need logits: the ends, or all if scores are wanted."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_server.rows import Sequence
from hf_server.scoring import score


class Window:
    """The places [start, end) of several prompts, in one forward pass of that width.

    `offsets`: the padding before each prompt.
    """

    def __init__(
        self, sequences: list[Sequence], *, start: int, end: int, offsets: list[int] | None = None
    ) -> None:
        self._sequences = sequences
        self._parts: list[range] = []
        width = end - start
        flat: list[int] = []
        for at, sequence in enumerate(sequences):
            last = len(sequence.ids) - 1
            first = start if sequence.score is not None else max(last, start)
            part = range(first, min(end, last + 1))
            self._parts.append(part)
            shift = at * width + (offsets[at] if offsets else 0) - start
            flat += [place + shift for place in part]
        self.keep = torch.tensor(flat, dtype=torch.long)

    def read(self, logits: Tensor) -> Tensor:
        """Store scores in the prompts, from the logits (place, vocabulary) of `keep`.

        Returns the logits of the prompts' ends, (sequence, vocabulary); a prompt that continues
        after the window has none.
        """
        ends, begin = [], 0
        for sequence, part in zip(self._sequences, self._parts, strict=True):
            mine = logits[begin : begin + len(part)]
            begin += len(part)
            if sequence.score is not None and len(part):
                targets = sequence.ids[part.start + 1 : part.stop + 1]
                sequence.scores += score(mine[: len(targets)], targets, top=sequence.score)
            if part.stop == len(sequence.ids) and len(part):
                ends.append(mine[-1:])
        return torch.cat(ends) if ends else logits[:0]
