"""Log-probabilities as the model gives them: before temperature, penalties and constraints."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hf_server.rows import TokenScore

_CHUNK = 256


def score(logits: Tensor, tokens: list[int], *, top: int) -> list[TokenScore]:
    """The score of `tokens[i]` after `logits[i]` (places, vocabulary), in float32.

    Computed in pieces: a prompt's logits in float32 would take twice their memory again.
    """
    found: list[TokenScore] = []
    for start in range(0, len(tokens), _CHUNK):
        part = tokens[start : start + _CHUNK]
        found += _score(logits[start : start + _CHUNK].float(), part, top)
    return found


def _score(logits: Tensor, tokens: list[int], top: int) -> list[TokenScore]:
    chosen = logits.gather(1, logits.new_tensor(tokens).long()[:, None])
    mass = logits.logsumexp(dim=-1, keepdim=True)
    logprobs = (chosen - mass)[:, 0].tolist()
    ranks = _count(logits > chosen).add_(1).tolist()
    if not top:
        return [
            TokenScore(token, logprob, rank, [])
            for token, logprob, rank in zip(tokens, logprobs, ranks, strict=True)
        ]
    values, ids = logits.topk(top, dim=-1)
    best = zip(ids.tolist(), (values - mass).tolist(), strict=True)
    return [
        TokenScore(token, logprob, rank, list(zip(*candidates, strict=True)))
        for token, logprob, rank, candidates in zip(tokens, logprobs, ranks, best, strict=True)
    ]


def _count(flags: Tensor) -> Tensor:
    """The number of set flags per line; summed as bytes first, which is a hundred times faster."""
    block = math.gcd(flags.shape[-1], 128)
    bytewise = flags.view(torch.uint8).view(len(flags), -1, block).sum(dim=-1, dtype=torch.uint8)
    return bytewise.sum(dim=-1)
