"""Prompts of an exact length that no prefix cache can know."""

from __future__ import annotations

import random
import secrets
import string
from collections.abc import Iterator

from enginehouse.core.messages import TokenPrompt
from enginehouse.core.sampler import Sampler

_WORDS = 512
_FRESH = 8  # tokens that begin every prompt: from 300 kinds of token, 2^65 beginnings


async def ordinary_tokens(sampler: Sampler) -> tuple[int, ...]:
    """Ids of tokens that text has, no special ones, as the server's tokenizer cuts random words.

    Always the same for a tokenizer. Raises WireError, as from a server without /tokenize.
    """
    draw = random.Random(0)
    words = (
        "".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 8))) for _ in range(_WORDS)
    )
    ids = await sampler.tokenize(" ".join(words), add_special_tokens=False)
    return tuple(sorted(set(ids)))


def random_prompts(tokens: tuple[int, ...], *, length: int, seed: int) -> Iterator[TokenPrompt]:
    """Endless prompts of exactly `length` of these tokens, drawn by the seed.

    Each begins with a few tokens (half of a short prompt at most, one at least) that no seed
    decides: so neither another prompt nor an earlier run with the same seed has left its beginning
    in the server's prefix cache, whose entries hold for one beginning only.
    """
    draw = random.Random(seed)
    fresh = min(_FRESH, max(1, length // 2))
    system = secrets.SystemRandom()
    while True:
        beginning = system.choices(tokens, k=fresh)
        yield TokenPrompt((*beginning, *draw.choices(tokens, k=length - fresh)))
