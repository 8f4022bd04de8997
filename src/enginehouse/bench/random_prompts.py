"""Prompts of an exact length that are in no prefix cache."""

from __future__ import annotations

import random
import secrets
import string
from collections.abc import Iterator

from enginehouse.core.messages import TokenPrompt
from enginehouse.core.sampler import Sampler

_WORDS = 512
_FRESH = 8  # tokens at the start of every prompt: with 300 different ones, 2^65 beginnings


async def ordinary_tokens(sampler: Sampler) -> tuple[int, ...]:
    """The token ids of random words, without special tokens, from the server's tokenizer.

    Deterministic for a tokenizer. Raises WireError, for example for a server without /tokenize.
    """
    draw = random.Random(0)
    words = (
        "".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 8))) for _ in range(_WORDS)
    )
    ids = await sampler.tokenize(" ".join(words), add_special_tokens=False)
    return tuple(sorted(set(ids)))


def random_prompts(tokens: tuple[int, ...], *, length: int, seed: int) -> Iterator[TokenPrompt]:
    """Endless prompts of exactly `length` of these tokens, drawn by the seed.

    Each begins with a few tokens (at least one, at most half of the prompt) that do not depend on
    the seed. Neither another prompt nor an earlier run with the same seed can therefore have left
    its beginning in the server's prefix cache.
    """
    draw = random.Random(seed)
    fresh = min(_FRESH, max(1, length // 2))
    system = secrets.SystemRandom()
    while True:
        beginning = system.choices(tokens, k=fresh)
        yield TokenPrompt((*beginning, *draw.choices(tokens, k=length - fresh)))
