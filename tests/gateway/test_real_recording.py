"""Recording, adapters and swapped weights with a real vLLM, SmolLM2 and the openai SDK."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from tests.support.changed_checkpoint import changed_checkpoint
from tests.support.command_line import SMALL_VLLM
from tests.support.deployments import opened
from tests.support.gateways import gateway_options
from tests.support.random_adapters import write_random_adapter

from enginehouse.deployment.base import Deployment
from enginehouse.deployment.configuration import ServeConfig, parse
from enginehouse.gateway.service import Gateway, open_gateway
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]
NORM = "model.layers.3.post_attention_layernorm.weight"
NAMES = ("one", "two")
SERVER = {
    "enable_lora": True,
    "enable_weight_swap": True,
    "max_loras": 1,
    "max_lora_rank": 8,
    "max_model_len": 512,
    "dtype": "float32",
    "served_model_name": "smollm2",
    "env_vars": SMALL_VLLM,
}
TOKENS = 4
QUESTION = "The keeper of the engine house wrote into his book:"


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> Layout:
    """The user's caches; the state is this module's own."""
    return replace(Layout.from_environment(), state=tmp_path_factory.mktemp("state"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ready(smollm2, machine) -> AsyncIterator[Deployment]:
    """A server with one place for adapters, whose weights can be swapped."""
    del smollm2  # converted before the server's start is waited for
    plan = parse(ServeConfig, {"model": "smollm2", "server": SERVER}, origin="test")
    async with opened(plan, layout=machine, notify=print, concurrency=8) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def checkpoint(smollm2) -> Path:
    """SmolLM2's folder."""
    return Path(smollm2.path)


class Client:
    """The openai SDK, asking a gateway."""

    def __init__(self, sdk: openai.AsyncOpenAI, gateway: Gateway) -> None:
        self.sdk = sdk
        self.gateway = gateway

    async def text(self, model: str = "smollm2", **fields: Any) -> str:
        """A greedy completion."""
        reply = await self.sdk.completions.create(
            model=model, prompt=QUESTION, temperature=0, max_tokens=TOKENS, **fields
        )
        return reply.choices[0].text

    async def stream(self, model: str = "smollm2") -> str:
        """The same, piece by piece."""
        pieces = await self.sdk.completions.create(
            model=model, prompt=QUESTION, temperature=0, max_tokens=TOKENS, stream=True
        )
        return "".join([piece.choices[0].text async for piece in pieces])

    async def scores(self, model: str = "smollm2") -> list[float]:
        """The log-probabilities of a greedy completion's tokens."""
        reply = await self.sdk.completions.create(
            model=model, prompt=QUESTION, temperature=0, max_tokens=TOKENS, logprobs=1
        )
        logprobs = reply.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.token_logprobs is not None
        return logprobs.token_logprobs

    @property
    def replayed(self) -> int:
        """How many answers came from the journal."""
        return self.gateway.figures().replayed


@asynccontextmanager
async def before(deployment: Deployment, machine: Layout, **options: Any) -> AsyncIterator[Client]:
    """A client of a gateway before the deployment."""
    async with (
        open_gateway(deployment, gateway_options(**options), Context(layout=machine)) as gateway,
        openai.AsyncOpenAI(
            base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=800
        ) as sdk,
    ):
        yield Client(sdk, gateway)


async def test_two_adapters_in_one_place(ready, machine, checkpoint, tmp_path):
    """Each answers as itself, in turn and at once; new content is noticed; no answer is stale."""
    folder = tmp_path / "adapters"
    for seed, name in enumerate(NAMES):
        write_random_adapter(folder / name, checkpoint=checkpoint, seed=seed)
    async with before(ready, machine, adapters=folder) as client:
        base = await client.text()
        alone = [await client.text(name) for name in NAMES]
        assert len({base, *alone}) == 3
        together = await asyncio.gather(*map(client.text, (*NAMES, "smollm2", "one")))
        assert together == [*alone, base, alone[0]]
        scores = [await client.scores(name) for name in ("smollm2", *NAMES)]
        at_once = await asyncio.gather(*map(client.scores, ("smollm2", *NAMES)))
        for one, other in zip(at_once, scores, strict=True):
            assert one == pytest.approx(other, abs=1e-3)
        assert await client.stream("two") == alone[1]
        listed = [model.id async for model in client.sdk.models.list()]
        assert listed == ["smollm2", *NAMES]
        with pytest.raises(openai.NotFoundError, match="'two'"):
            await client.text("tow")
    options = {"adapters": folder, "record": tmp_path / "journal", "replay": True}
    async with before(ready, machine, **options) as client:
        assert [await client.text(name) for name in NAMES] == alone
        assert [await client.text(name) for name in NAMES] == alone
        assert client.replayed == 2
        write_random_adapter(folder / "one", checkpoint=checkpoint, seed=7)
        changed = await client.text("one")
        assert changed not in alone
        assert await client.text("one") == changed
        assert client.replayed == 3
        write_random_adapter(folder / "one", checkpoint=checkpoint, seed=0)
        assert await client.text("one") == alone[0]
        assert client.replayed == 4


async def test_swapped_weights_get_no_old_answers(ready, machine, checkpoint, tmp_path):
    """Whole answers, streams and scores, also of requests that were in flight during the swap."""
    other = changed_checkpoint(checkpoint, tmp_path / "other", tensor=NORM, factor=-3.0)
    scores = {"prompt": QUESTION, "max_tokens": 1, "echo": True, "logprobs": 1}
    assert ready.weights is not None
    async with before(ready, machine, record=tmp_path / "journal", replay=True) as client:

        async def asked() -> tuple[str, str, list[float | None] | None]:
            reply = await client.sdk.completions.create(model="smollm2", **scores)
            logprobs = reply.choices[0].logprobs
            assert logprobs is not None
            return await client.text(), await client.stream(), logprobs.token_logprobs

        old = await asked()
        assert old[0] == old[1]
        assert await asked() == old
        assert client.replayed == 3
        long = {"model": "smollm2", "prompt": QUESTION, "temperature": 0, "max_tokens": 5 * TOKENS}
        flight = [
            asyncio.create_task(client.sdk.completions.create(**long, user=name))
            for name in ("me", "you")
        ]
        await asyncio.sleep(0.5)
        await ready.weights.swap(other, in_flight="abort")
        await asyncio.gather(*flight)
        new = await asked()
        assert all(one != two for one, two in zip(old, new, strict=True))
        assert new[0] == new[1]
        assert await asked() == new
        assert client.replayed == 6
        by_new = await client.sdk.completions.create(**long)
        await ready.weights.swap(checkpoint)
        assert await asked() == old
        assert client.replayed == 10
        by_old = await client.sdk.completions.create(**long)
        assert by_old.choices[0].text != by_new.choices[0].text
        assert client.replayed == 10


async def test_a_resumed_program_is_given_what_it_was_given(ready, machine, tmp_path):
    """Answers that were left to chance, in their order; the engine is asked for the rest."""
    chances = {"prompt": QUESTION, "temperature": 1.0, "max_tokens": TOKENS, "model": "smollm2"}
    options = {"record": tmp_path / "journal", "resume": True}
    async with before(ready, machine, **options) as client:
        first = [await client.sdk.completions.create(**chances) for _ in range(3)]
    assert len({reply.choices[0].text for reply in first}) > 1
    async with before(ready, machine, **options) as client:
        again = [await client.sdk.completions.create(**chances) for _ in range(4)]
        assert again[:3] == first
        assert again[3].id not in [reply.id for reply in first]
        assert client.replayed == 3
