"""Log-probabilities of tokens after given logits."""

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


def score_ids(logits: Tensor, tokens: tuple[int, ...]) -> list[tuple[int, float]]:
    """Each of `tokens`, and its log-probability after `logits` (vocabulary)."""
    values = logits.float().log_softmax(dim=-1)
    return list(zip(tokens, values[list(tokens)].tolist(), strict=True))


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
        TokenScore(token, logprob, rank, _possible(*candidates))
        for token, logprob, rank, candidates in zip(tokens, logprobs, ranks, best, strict=True)
    ]


def _possible(tokens: list[int], logprobs: list[float]) -> list[tuple[int, float]]:
    """The candidates without those that are cut off."""
    pairs = zip(tokens, logprobs, strict=True)
    return [(token, logprob) for token, logprob in pairs if logprob > -math.inf]


def _count(flags: Tensor) -> Tensor:
    """The number of set flags per line; summed as bytes first, which is a hundred times faster."""
    block = math.gcd(flags.shape[-1], 128)
    bytewise = flags.view(torch.uint8).view(len(flags), -1, block).sum(dim=-1, dtype=torch.uint8)
    return bytewise.sum(dim=-1)
