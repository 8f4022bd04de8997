"""How far two programs' log-probabilities of the same tokens are apart."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np


class TokenParity(msgspec.Struct, frozen=True, kw_only=True):
    """Differences in nats per token, and the importance ratio exp(ours - reference).

    `sequence` and `token` say where the largest difference is: 0 is the first sequence, and in it
    the first token that has a log-probability. `clipped` is the share of tokens whose ratio lies
    outside 0.8 to 1.2, where PPO would clip it (Schulman et al. 2017, https://arxiv.org/abs/1707.06347).
    """

    tokens: int
    mean: float
    largest: float
    sequence: int
    token: int
    ratio_mean: float
    ratio_least: float
    ratio_most: float
    clipped: float


def token_parity(
    ours: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]
) -> TokenParity:
    """Compare token by token; both have the same sequences of the same lengths.

    Raises ValueError for different lengths, for no tokens, and for values that are not finite.
    """
    if [len(one) for one in ours] != [len(one) for one in reference] or not any(map(len, ours)):
        raise ValueError("both sides need the same, at least one, tokens")
    a, b = (
        np.concatenate([np.asarray(one, dtype=float) for one in side]) for side in (ours, reference)
    )
    difference = a - b
    if not np.isfinite(difference).all():
        raise ValueError("a log-probability is not finite")
    ratio = np.exp(difference)
    at = int(np.abs(difference).argmax())
    starts = np.cumsum([0, *(len(one) for one in ours)])
    sequence = int(np.searchsorted(starts, at, side="right")) - 1
    return TokenParity(
        tokens=len(difference),
        mean=float(np.abs(difference).mean()),
        largest=float(np.abs(difference).max()),
        sequence=sequence,
        token=at - int(starts[sequence]),
        ratio_mean=float(ratio.mean()),
        ratio_least=float(ratio.min()),
        ratio_most=float(ratio.max()),
        clipped=float(((ratio < 0.8) | (ratio > 1.2)).mean()),
    )
