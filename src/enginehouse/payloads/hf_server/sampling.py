"""From logits to the next tokens, for a whole batch at once.

The order is vLLM's: constraint, penalties, temperature, min_p, top_k, top_p.
"""

from __future__ import annotations

from collections.abc import Sequence as Listed
from typing import NamedTuple

import torch
import xgrammar
from torch import Tensor

from hf_server.requests import Sampling
from hf_server.rows import Row

# The sorted beginning of a distribution in which top_k, top_p and min_p nearly always decide.
_HEAD = 1024
_BLOCK = 256


def choose(logits: Tensor, rows: Listed[Row]) -> list[int]:
    """The next token of every row. `logits` (rows, vocabulary), float32, is overwritten."""
    _constrain(logits, rows)
    _penalise(logits, rows)
    greedy = logits.argmax(dim=-1).tolist()
    hot = [place for place, row in enumerate(rows) if row.sampling.temperature > 0]
    if not hot:
        return greedy
    drawn = _draw(logits if len(hot) == len(rows) else logits[hot], [rows[p] for p in hot])
    for place, token in zip(hot, drawn, strict=True):
        greedy[place] = token
    return greedy


def drawn_from(logits: Tensor, rows: Listed[Row]) -> Tensor:
    """The logits of the distributions that `choose` drew from, given those that it has left.

    After temperature, min_p, top_k and top_p, whatever these cut off is minus infinity. Greedy
    rows keep theirs.
    """
    lines = [
        _cut(line / how.temperature, how) if how.temperature > 0 else line
        for line, how in zip(logits, (row.sampling for row in rows), strict=True)
    ]
    return torch.stack(lines)


def _cut(logits: Tensor, how: Sampling) -> Tensor:
    if not (how.top_k or how.top_p < 1 or how.min_p > 0):
        return logits
    ranked, tokens = logits.sort(descending=True)
    mass = ranked.softmax(dim=-1)
    keep = mass >= how.min_p * mass[0]
    if how.top_k:
        keep[how.top_k :] = False
    kept = mass * keep
    keep &= (kept.cumsum(dim=-1) - kept) < how.top_p * kept.sum()
    return torch.full_like(logits, -torch.inf).scatter(0, tokens[keep], ranked[keep])


def _constrain(logits: Tensor, rows: Listed[Row]) -> None:
    for place, row in enumerate(rows):
        if row.sampling.min_tokens and (forbidden := row.forbidden):
            logits[place, forbidden] = -torch.inf
    places = [place for place, row in enumerate(rows) if row.matcher is not None]
    if not places:
        return
    bitmask = xgrammar.allocate_token_bitmask(len(rows), logits.shape[-1])
    for place in places:
        rows[place].fill(bitmask, place)
    xgrammar.apply_token_bitmask_inplace(logits, bitmask.to(logits.device), indices=places)


def _penalise(logits: Tensor, rows: Listed[Row]) -> None:
    """OpenAI's penalties on what the answer has, CTRL's repetition penalty on the prompt too."""
    for place, row in enumerate(rows):
        how = row.sampling
        if how.repetition_penalty != 1:
            seen = torch.tensor([*row.prompt, *row.ids], device=logits.device).unique()
            there = logits[place, seen]
            factor = how.repetition_penalty
            logits[place, seen] = torch.where(there > 0, there / factor, there * factor)
        if row.ids and (how.presence_penalty or how.frequency_penalty):
            seen, counts = torch.tensor(row.ids, device=logits.device).unique(return_counts=True)
            logits[place, seen] -= how.presence_penalty + how.frequency_penalty * counts


class _Filters(NamedTuple):
    """Every row's parameters as columns."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    uniform: Tensor

    def only(self, places: list[int]) -> _Filters:
        return _Filters(*(column[places] for column in self))


def _draw(logits: Tensor, rows: Listed[Row]) -> list[int]:
    values = [
        (how.temperature, how.top_k or logits.shape[-1], how.top_p, how.min_p, row.uniform())
        for row in rows
        for how in (row.sampling,)
    ]
    table = torch.tensor(values, dtype=torch.float64, device=logits.device)
    filters = _Filters(*(column[:, None].float() for column in table.unbind(1)))
    scaled = logits / filters.temperature
    plain, filtered = [], []
    for place, row in enumerate(rows):
        how = row.sampling
        cut = how.top_k or how.top_p < 1 or how.min_p > 0
        (filtered if cut else plain).append(place)
    found = [0] * len(rows)
    if plain:
        for place, token in zip(
            plain, _from_all(scaled[plain], filters.uniform[plain]), strict=True
        ):
            found[place] = token
    if filtered:
        for place, token in zip(
            filtered, _from_head(scaled[filtered], filters.only(filtered)), strict=True
        ):
            found[place] = token
    return found


def _from_all(logits: Tensor, uniform: Tensor) -> list[int]:
    """Inverse transform sampling: first the block of tokens, then the token in it.

    Two short running sums are faster, and lose less precision, than one over the vocabulary.
    """
    size = logits.shape[-1]
    padded = torch.nn.functional.pad(logits, (0, -size % _BLOCK), value=-torch.inf)
    mass = padded.softmax(dim=-1).view(len(logits), -1, _BLOCK)
    sums = mass.sum(dim=-1).cumsum(dim=-1)
    target = uniform * sums[:, -1:]
    block = (sums <= target).sum(dim=-1, keepdim=True).clamp_(max=sums.shape[-1] - 1)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp_(min=0)), 0.0)
    inside = mass.gather(1, block[:, :, None].expand(-1, 1, _BLOCK))[:, 0]
    return (block[:, 0] * _BLOCK + _pick(inside, target - before)).tolist()


def _pick(mass: Tensor, target: Tensor) -> Tensor:
    """The first place at which the running sum of `mass` passes `target`, among those with any."""
    sums = mass.cumsum(dim=-1)
    place = (sums <= target).sum(dim=-1)
    last = mass.shape[-1] - 1 - (mass.flip(-1) > 0).int().argmax(dim=-1)
    return torch.minimum(place, last)


def _from_head(logits: Tensor, filters: _Filters) -> list[int]:
    """Sampling from what top_k, top_p and min_p leave of the sorted distribution."""
    size = logits.shape[-1]
    width = (
        min(size, max(_HEAD, int(filters.top_k[filters.top_k < size].max().item()) + 1))
        if (filters.top_k < size).any()
        else min(size, _HEAD)
    )
    ranked, tokens = logits.topk(width, dim=-1)
    mass = (ranked - logits.logsumexp(dim=-1, keepdim=True)).exp()
    keep = mass >= filters.min_p * mass[:, :1]
    keep &= torch.arange(width, device=logits.device) < filters.top_k
    if width < size and bool(_undecided(mass, keep, filters).any()):
        ranked, tokens = logits.sort(dim=-1, descending=True)
        mass = ranked.softmax(dim=-1)
        keep = mass >= filters.min_p * mass[:, :1]
        keep &= torch.arange(size, device=logits.device) < filters.top_k
    kept = mass * keep
    total = kept.sum(dim=-1, keepdim=True)
    # Where nothing but top_p cuts, what lies behind the head counts, too.
    total = torch.where(keep.all(dim=-1, keepdim=True), mass.new_ones(1), total)
    kept *= (kept.cumsum(dim=-1) - kept) < filters.top_p * total
    chosen = _pick(kept, filters.uniform * kept.sum(dim=-1, keepdim=True))
    return tokens.gather(1, chosen[:, None])[:, 0].tolist()


def _undecided(mass: Tensor, keep: Tensor, filters: _Filters) -> Tensor:
    """The rows whose cut lies behind the head."""
    return keep[:, -1] & (mass.sum(dim=-1) < filters.top_p[:, 0])
