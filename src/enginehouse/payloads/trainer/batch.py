"""Sequences of several requests in one forward and backward pass.

Rows are padded on the right: with causal attention no token sees what follows it, so padding needs
no mask and changes nothing. Its hidden states are dropped before the output layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional

from trainer.adapter import Adapter, Workspace
from trainer.jobs import Job
from trainer.lora import Group
from trainer.losses import sequence_ratio


@dataclass(frozen=True, eq=False, kw_only=True)
class Line:
    """A row of a job, by its number there."""

    job: Job
    number: int

    @property
    def length(self) -> int:
        """In tokens."""
        return len(self.job.rows[self.number].tokens)


def divide(jobs: Sequence[Job], *, tokens: int) -> Iterator[list[Line]]:
    """All rows of the jobs, in passes of at most `tokens` with padding, or of one row.

    The jobs all want gradients, or none does.

    Rows of a pass are of similar length, and sorted by job.
    """
    lines = [Line(job=job, number=number) for job in jobs for number in range(len(job.rows))]
    lines.sort(key=lambda line: line.length, reverse=True)
    order = {job: number for number, job in enumerate(jobs)}
    while lines:
        count = max(1, tokens // lines[0].length)
        yield sorted(lines[:count], key=lambda line: (order[line.job], line.number))
        lines = lines[count:]


@dataclass(frozen=True, eq=False, kw_only=True)
class _Segment:
    """The positions of one job in a batch, `start` to `stop`, and their inputs, (n, K)."""

    job: Job
    lines: list[Line]
    start: int
    stop: int
    targets: int
    inputs: dict[str, Tensor]


class Batch:
    """Lines that are computed together. A *position* is a token of the batch, without padding.

    `ids` is (rows, width) int64; `positions` (n,) are the positions' places in it when flat;
    `targets` is (n, K) for the largest K of all jobs. Lines are sorted by job, and best by adapter.
    """

    def __init__(
        self,
        lines: Sequence[Line],
        *,
        workspaces: Mapping[Adapter, Workspace],
        device: torch.device,
    ) -> None:
        width = max(line.length for line in lines)
        ids = torch.zeros(len(lines), width, dtype=torch.int64)
        columns = max(line.job.rows[line.number].targets.shape[1] for line in lines)
        positions, targets = [], []
        for at, line in enumerate(lines):
            row = line.job.rows[line.number]
            ids[at, : line.length] = row.tokens
            positions.append(torch.arange(line.length) + at * width)
            targets.append(functional.pad(row.targets, (0, columns - row.targets.shape[1])))
        self.ids = ids.to(device)
        self.positions = torch.cat(positions).to(device)
        self.targets = torch.cat(targets).to(device)
        self.groups_of_rows: list[Group] = []
        self.groups_of_positions: list[Group] = []
        self._segments: list[_Segment] = []
        self._device = device
        self._group(lines, workspaces)

    def _group(self, lines: Sequence[Line], workspaces: Mapping[Adapter, Workspace]) -> None:
        row = position = 0
        for adapter, jobs in groupby(lines, key=lambda line: line.job.adapter):
            first_row, first_position = row, position
            for job, its in groupby(jobs, key=lambda line: line.job):
                own = list(its)
                count = sum(line.length for line in own)
                self._segments.append(self._segment(job, own, position, position + count))
                row, position = row + len(own), position + count
            factors = workspaces[adapter].factors
            self.groups_of_rows.append(Group(factors=factors, start=first_row, stop=row))
            self.groups_of_positions.append(
                Group(factors=factors, start=first_position, stop=position)
            )

    def _segment(self, job: Job, lines: list[Line], start: int, stop: int) -> _Segment:
        rows = [job.rows[line.number] for line in lines]
        columns = max(row.targets.shape[1] for row in rows)
        inputs = {
            name: torch.cat(
                [
                    functional.pad(row.inputs[name], (0, columns - row.targets.shape[1]))
                    for row in rows
                ]
            ).to(self._device)
            for name in rows[0].inputs
        }
        return _Segment(
            job=job, lines=lines, start=start, stop=stop, targets=columns, inputs=inputs
        )

    @property
    def backward(self) -> bool:
        """Whether gradients are wanted, by all of the batch's jobs or by none."""
        return self._segments[0].job.backward

    @property
    def by_sequence(self) -> bool:
        """Whether a loss needs `weigh_sequences` first."""
        return any(segment.job.loss.by_sequence for segment in self._segments)

    def weigh_sequences(self, logprobs: Tensor) -> None:
        """Tell the losses that need it the log-probabilities (n, K) of whole sequences."""
        for segment in self._segments:
            if segment.job.loss.by_sequence:
                ratios, at = [], segment.start
                for line in segment.lines:
                    lp = logprobs[at : at + line.length, :1]
                    part = slice(at - segment.start, at - segment.start + line.length)
                    inputs = {name: tensor[part] for name, tensor in segment.inputs.items()}
                    ratios.append(sequence_ratio(lp, inputs))
                    at += line.length
                segment.inputs["sequence_ratio"] = torch.cat(ratios)

    def evaluate(self, logprobs: Tensor, start: int) -> Tensor | None:
        """Add the positions from `start` on to their jobs' losses; each position once.

        Returns the gradient by `logprobs`, (n, K), or None for a forward pass.
        """
        gradient = torch.zeros_like(logprobs)
        has_gradient = False
        for segment in self._segments:
            first = max(segment.start, start)
            last = min(segment.stop, start + len(logprobs))
            if first >= last:
                continue
            here = slice(first - start, last - start)
            inputs: Mapping[str, Tensor] = {
                name: tensor[first - segment.start : last - segment.start]
                for name, tensor in segment.inputs.items()
            }
            found = segment.job.evaluate(logprobs[here, : segment.targets], inputs)
            if found is not None:
                gradient[here, : segment.targets] = found
                has_gradient = True
        return gradient if has_gradient else None

    def deliver(self, logprobs: Tensor) -> None:
        """Give every job its rows' log-probabilities, each shaped as its targets."""
        found, at = logprobs.cpu().numpy(), 0
        for segment in self._segments:
            for line in segment.lines:
                row = segment.job.rows[line.number]
                part = found[at : at + line.length, : row.targets.shape[1]]
                segment.job.logprobs[line.number] = part.reshape(row.shape).copy()
                at += line.length
