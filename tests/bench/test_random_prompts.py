from __future__ import annotations

from itertools import islice

import pytest

from enginehouse.bench.random_prompts import ordinary_tokens, random_prompts
from enginehouse.client.sampler import HTTPSampler
from enginehouse.engines.vllm.engine import VllmEngine
from enginehouse.engines.vllm.wire import VLLM
from enginehouse.testing.fake_engine import running_fake_engine
from enginehouse.testing.fake_engine.tokenizer import SPECIAL

TOKENS = tuple(range(100, 500))


def prompts(count: int, *, length: int, seed: int = 0) -> list[tuple[int, ...]]:
    """The first ids drawn."""
    drawn = islice(random_prompts(TOKENS, length=length, seed=seed), count)
    return [prompt.token_ids for prompt in drawn]


@pytest.mark.parametrize("length", [1, 2, 7, 16, 1000])
def test_the_length_is_exact(length: int):
    """Whatever it is; every token is one of those given."""
    for ids in prompts(5, length=length):
        assert len(ids) == length
        assert set(ids) <= set(TOKENS)


def test_the_seed_decides_all_but_the_beginning():
    """Two runs of one seed ask for the same, but no prefix cache knows the second's prompts."""
    first, second = prompts(20, length=64), prompts(20, length=64)
    assert [ids[8:] for ids in first] == [ids[8:] for ids in second]
    assert len({ids[:8] for ids in first + second}) == 40
    assert prompts(1, length=64, seed=1)[0][8:] != first[0][8:]


async def test_tokens_are_ordinary_ones():
    """They come from the server's tokenizer: many, without special ones, the same each time."""
    async with (
        running_fake_engine() as engine,
        HTTPSampler(engine.url, capabilities=VllmEngine().capabilities(None), wire=VLLM) as sampler,
    ):
        tokens = await ordinary_tokens(sampler)
        assert tokens == await ordinary_tokens(sampler)
    assert len(tokens) > 300
    assert min(tokens) >= len(SPECIAL)
