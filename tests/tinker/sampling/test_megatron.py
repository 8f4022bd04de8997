"""A Megatron text server samples from the base model, and says what it cannot do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.errors import ConfigurationError, TinkerError
from enginehouse.engines.megatron.engine import MegatronEngine
from enginehouse.runtime.context import Context
from enginehouse.testing.fake_engine import tokenizer
from enginehouse.testing.fake_vendors import FakeMegatron, running_fake_vendor
from enginehouse.testing.sampling_cases import BASE
from enginehouse.tinker.configuration import TinkerConfig
from enginehouse.tinker.sampling.base import TokenPrompt, Weights
from enginehouse.tinker.sampling.megatron import MegatronSampling, megatron_sampling

ADAPTER = Weights(key="mine", folder=Path("mine"))
TEXT = "The pump stands still"


class _Tokenizer:
    """Decodes as the fake server does."""

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool) -> str:
        return tokenizer.decode(list(tokens), specials=not skip_special_tokens)


@asynccontextmanager
async def _sampling() -> AsyncIterator[MegatronSampling]:
    engine = MegatronEngine()
    async with (
        running_fake_vendor(FakeMegatron()) as server,
        HTTPSampler(
            server.url,
            model="megatron",
            capabilities=engine.capabilities(None),
            wire=engine.wire,
            concurrency=1,
        ) as sampler,
    ):
        yield MegatronSampling(sampler, _Tokenizer(), url=server.url, max_length=256)


def _prompt(tokens: Sequence[int] | None = None, **fields: Any) -> TokenPrompt:
    given = tokenizer.encode(TEXT) if tokens is None else tokens
    return TokenPrompt(
        tokens=np.array(given, np.int32), **{"max_tokens": 6, "temperature": 0.0} | fields
    )


async def test_tokens_in_and_out():
    """Ids and log-probabilities of the answer and of the prompt, whose first is NaN."""
    async with _sampling() as engine:
        made = await engine.sample(BASE, _prompt(samples=2, prompt_logprobs_from=2))
    first, second = made.sequences
    assert first.tokens.tolist() == second.tokens.tolist()
    assert len(first.tokens) == len(first.logprobs) == 6
    assert not first.stopped
    assert made.prompt_logprobs is not None
    nans = np.isnan(made.prompt_logprobs).tolist()
    assert nans == [True, True] + [False] * (len(_prompt().tokens) - 2)


async def test_the_end():
    """An answer that the model ends, or a stop ends, which it includes."""
    async with _sampling() as engine:
        whole = (await engine.sample(BASE, _prompt(max_tokens=200))).sequences[0]
        assert whole.stopped
        ids = whole.tokens.tolist()
        by_id = (await engine.sample(BASE, _prompt(max_tokens=200, stop=(ids[2],)))).sequences[0]
        assert by_id.tokens.tolist() == ids[: ids.index(ids[2]) + 1]
        text = tokenizer.decode(ids)
        stop = text[4:6]
        by_text = (await engine.sample(BASE, _prompt(max_tokens=200, stop=(stop,)))).sequences[0]
        made = by_text.tokens.tolist()
        assert made == ids[: len(made)]
        assert stop in tokenizer.decode(made)
        assert stop not in tokenizer.decode(made[:-1])
        assert by_id.stopped
        assert by_text.stopped


async def test_tokens_that_a_tokenizer_would_not_make():
    """The server would score other tokens than were asked for."""
    letters = [token for letter in "pump" for token in tokenizer.encode(letter)]
    async with _sampling() as engine:
        with pytest.raises(TinkerError, match="other tokens"):
            await engine.sample(BASE, _prompt(letters))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"seed": 1}, "a seed"),
        ({"stop": ()}, "stop=\\[\\]"),
        ({"prompt_top_k": 1}, "top-k"),
        ({"targets": np.zeros((1, 1), np.int64)}, "target_prompt_logprobs"),
        ({"alternatives": 1}, "prompt_alt_tokens_k"),
        ({"max_tokens": 1000}, "at most"),
    ],
)
async def test_what_it_lacks_is_named(fields, named):
    """It ignores a seed, for one, and nothing is ignored silently."""
    async with _sampling() as engine:
        with pytest.raises(TinkerError, match=named):
            await engine.sample(BASE, _prompt(**fields))


async def test_adapters_are_refused():
    """Never does the base answer in their stead."""
    async with _sampling() as engine:
        for asking in (
            engine.prepare(ADAPTER),
            engine.sample(ADAPTER, _prompt()),
            engine.complete(ADAPTER, "/v1/completions", {"prompt": "Hi"}),
        ):
            with pytest.raises(TinkerError, match="LoRA adapters"):
                await asking
        await engine.prepare(BASE)
        await engine.forget(ADAPTER)


async def test_openai_bodies():
    """Texts, with the fields that it has."""
    async with _sampling() as engine:
        body = {"model": "any", "prompt": TEXT, "max_tokens": 4, "temperature": 0}
        reply = await engine.complete(BASE, "/v1/completions", body)
        assert reply["model"] == "any"
        assert reply["choices"][0]["finish_reason"] == "length"
        assert reply["usage"]["completion_tokens"] == 4
        for path, wrong, named in (
            ("/v1/chat/completions", {}, "conversations"),
            ("/v1/completions", {"logprobs": 1}, "the field logprobs"),
            ("/v1/completions", {"prompt": [1, 2]}, "prompts of tokens"),
        ):
            with pytest.raises(TinkerError, match=named):
                await engine.complete(BASE, path, body | wrong)
        with pytest.raises(TinkerError, match="streams"):
            await engine.stream(BASE, "/v1/completions", body)


async def test_it_needs_a_tokenizer(tmp_path: Path):
    """The base model is a folder that has one."""
    config = TinkerConfig(
        base_model=str(tmp_path), sampler="megatron", megatron_url="http://127.0.0.1:9"
    )
    with pytest.raises(ConfigurationError, match=r"tokenizer\.json"):
        async with megatron_sampling(config, Context()):
            pass
