"""A real CPU vLLM with SmolLM2, and an adapter that was trained for these tests."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from tests.support.derived_adapters import derive, pickled, scaled, variant

from enginehouse.client.sampler import HTTPSampler
from enginehouse.client.stack import ServerLayers
from enginehouse.core.errors import AdapterError, UnknownModelError
from enginehouse.core.messages import ChatPrompt, Message, TextPrompt
from enginehouse.core.sampler import SampleRequest
from enginehouse.core.sampling import SamplingParameters
from enginehouse.deployment.samplers import exclusive_requests
from enginehouse.engines.options import ServerOptions
from enginehouse.engines.vllm.engine import VllmEngine
from enginehouse.provisioning.models import ResolvedModel
from enginehouse.store.layout import Layout
from enginehouse.weights.peft_folder import checkpoint_shapes
from enginehouse.weights.pool import AdapterPool
from enginehouse.weights.store import AdapterStore

pytestmark = pytest.mark.engine
ENGINE = VllmEngine()
TEXT = "In this round the red team votes first, and then the black team answers the question."
PLACES = 4
CLOSE = 0.01  # nats: rounding in float32, far below what any adapter here changes


@dataclass(frozen=True)
class Served:
    """The server, what it serves, and how it must be asked."""

    url: str
    admin_key: str
    model: ResolvedModel
    options: ServerOptions
    quirks: tuple


@pytest.fixture(scope="module")
def trained(vote_adapter) -> Path:
    """An adapter of rank 8 over seven projections, after 20 steps."""
    return vote_adapter


@pytest.fixture(scope="module")
def served(lora_vllm, vllm_environment, smollm2) -> Served:
    """A vLLM with four places for adapters of rank 8, which other tests use as well."""
    options = lora_vllm.options
    assert options.max_loras == PLACES
    quirks = ENGINE.quirks(options, environment=vllm_environment)
    return Served(lora_vllm.url, lora_vllm.admin_key, smollm2, options, quirks)


@pytest.fixture
async def sampler(served) -> AsyncIterator[HTTPSampler]:
    """What asks the server, and leaves it without adapters."""
    shared = ServerLayers(exclusive=exclusive_requests(served.quirks))
    assert shared.exclusive, "prompt log-probabilities are asked for by themselves here"
    async with HTTPSampler(
        served.url,
        capabilities=ENGINE.capabilities(None),
        wire=ENGINE.wire,
        admin_key=served.admin_key,
        shared=shared,
    ) as made:
        yield made
        for name in set(await made.models()) - {"smollm2"}:
            await made.unload_adapter(name)


@pytest.fixture
def pool(served, sampler, tmp_path) -> AdapterPool:
    """A pool that knows what the server takes."""
    home = Layout(cache=tmp_path / "cache", state=tmp_path / "state", config=tmp_path / "config")
    return AdapterPool(
        sampler,
        max_loras=PLACES,
        store=AdapterStore(home),
        base=checkpoint_shapes(Path(served.model.path)),
        max_rank=served.options.max_lora_rank,
    )


async def said(pool: AdapterPool, model: str | None = None) -> str:
    """The greedy answer to a question of the training."""
    request = SampleRequest(
        prompt=ChatPrompt((Message("user", "How do you vote?"),)),
        model=model,
        parameters=SamplingParameters(max_tokens=16),
    )
    return (await pool.sample(request)).completions[0].text


async def signature(pool: AdapterPool, model: str | None) -> np.ndarray:
    """The log-probabilities of a text's tokens, the first left out."""
    request = SampleRequest(
        prompt=TextPrompt(TEXT),
        model=model,
        parameters=SamplingParameters(max_tokens=1, prompt_logprobs=0),
    )
    response = await pool.sample(request)
    assert response.prompt_logprobs is not None
    return np.array([token.logprob for token in response.prompt_logprobs if token is not None])


async def test_a_trained_adapter_works_and_unloading_restores_the_base(pool, sampler, trained):
    """It says what it learned, its effect is proved, and the base is itself afterwards."""
    base, base_signature = await said(pool), await signature(pool, None)
    loaded = await pool.load("vote", trained, prove=True)
    assert loaded.effect is not None
    assert loaded.effect.mean_difference > 0.1
    assert loaded.effect.noise < CLOSE
    assert (await said(pool, "vote")).startswith("VOTE: BLACK because cooperation wins.")
    assert await said(pool) == base
    await pool.unload("vote")
    assert await sampler.models() == ("smollm2",)
    with pytest.raises(UnknownModelError):
        await said(pool, "vote")
    assert await said(pool) == base
    assert distance(await signature(pool, None), base_signature) < CLOSE


ADMINISTRATION = (
    *(("POST", path) for path in ("/pause", "/resume", "/sleep", "/wake_up", "/collective_rpc")),
    *(("POST", path) for path in ("/reset_prefix_cache", "/update_weights", "/scale_elastic_ep")),
    *(("POST", path) for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters")),
    *(("GET", path) for path in ("/is_paused", "/weight_info", "/server_info", "/get_world_size")),
)


async def test_strangers_on_this_machine_change_nothing(served):
    """Without the administrative key every such endpoint refuses; answers are for everybody."""
    asked = {"model": "smollm2", "prompt": "1", "max_tokens": 1}
    async with aiohttp.ClientSession(served.url) as session:
        for headers in ({}, {"Authorization": "Bearer any"}):
            for method, path in ADMINISTRATION:
                async with session.request(method, path, json={}, headers=headers) as reply:
                    assert reply.status == 401, path
            for path in ("/v1/completions", "/invocations"):
                async with session.post(path, json=asked, headers=headers) as reply:
                    assert reply.status == 200, path
        key = {"Authorization": f"Bearer {served.admin_key}"}
        async with session.get("/is_paused", headers=key) as reply:
            assert await reply.json() == {"is_paused": False}


async def test_a_template_in_a_request_is_not_run(served):
    """As vLLM has it, unless it is started with --trust-request-chat-template."""
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    asked = {"model": "smollm2", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    async with aiohttp.ClientSession(served.url) as session:
        for field in ({"chat_template": loops}, {"chat_template_kwargs": {"chat_template": loops}}):
            async with session.post("/v1/chat/completions", json=asked | field) as reply:
                assert reply.status == 400


async def test_proven_again_after_a_sleep(served, pool, trained):
    """Put to sleep and woken by hand: what was proven is proven again, and answers as before."""
    await pool.load("vote", trained, prove=True)
    before = await said(pool, "vote")
    key = {"Authorization": f"Bearer {served.admin_key}"}
    async with aiohttp.ClientSession(served.url, headers=key) as session:
        for path in ("/sleep?level=1&mode=wait", "/wake_up"):
            async with session.post(path) as reply:
                assert reply.status == 200
    await pool.restore()
    assert await said(pool, "vote") == before


async def test_overwritten_in_place(pool, trained, tmp_path):
    """The same alias and folder with new content: never an older answer, by cache or otherwise."""
    folder = tmp_path / "mine"
    answers, signatures = [], []
    for factor in (1.0, -1.0, 0.05):
        scaled(trained, folder, factor)
        await pool.load("mine", folder)
        answers.append(await said(pool, "mine"))
        signatures.append(await signature(pool, "mine"))
    for one, other in itertools.combinations(range(3), 2):
        assert distance(signatures[one], signatures[other]) > 1
    assert len(set(answers)) == 3
    await pool.load("fresh", folder)
    assert await said(pool, "fresh") == answers[-1]
    assert distance(await signature(pool, "fresh"), signatures[-1]) < CLOSE


async def test_one_without_effect(pool, sampler, trained, tmp_path):
    """All B zero: the proof fails, says why, and unloads it; without proof it is the base."""
    folder = scaled(trained, tmp_path / "zero", 0.0)
    with pytest.raises(AdapterError, match=r"exactly .*smollm2") as caught:
        await pool.load("zero", folder, prove=True)
    assert "before the first step" in str(caught.value)
    assert await sampler.models() == ("smollm2",)
    await pool.load("zero", folder)
    assert await said(pool, "zero") == await said(pool)


def widened(made):
    """As for a base of another width."""
    for name in made:
        if "lora_A" in name:
            made[name] = np.concatenate([made[name]] * 2, axis=1)


def another_model(made):
    """As for a base with another kind of attention."""
    for name in list(made):
        if "q_proj" in name:
            made[name.replace("q_proj", "qkv_proj")] = made.pop(name)


def incomplete(made):
    """One tensor is missing."""
    made.pop(next(name for name in made if "lora_B" in name))


def diverged(made):
    """One value is none."""
    next(iter(made.values()))[0, 0] = np.nan


def enlarged(made):
    """One module only, of rank 512."""
    for name in list(made):
        values = made.pop(name)
        if ".layers.0.self_attn.q_proj." in name:
            axis = 0 if "lora_A" in name else 1
            made[name] = np.concatenate([values] * 64, axis=axis)


async def test_bad_adapters_never_reach_the_server(pool, sampler, trained, tmp_path):
    """Each is refused with its reason; the server has none of them and answers as before."""
    before = await said(pool), await signature(pool, None)
    wrong = {
        "does not fit the base model": derive(trained, tmp_path / "widened", widened),
        "which the base model does not have": derive(trained, tmp_path / "other", another_model),
        "has no lora_B": derive(trained, tmp_path / "incomplete", incomplete),
        "NaN": derive(trained, tmp_path / "diverged", diverged),
        "rank 512": derive(trained, tmp_path / "enlarged", enlarged, r=512),
        "a pickle": pickled(trained, tmp_path / "pickled"),
    }
    for reason, folder in wrong.items():
        with pytest.raises(AdapterError, match=reason):
            await pool.load("bad", folder)
    assert await sampler.models() == ("smollm2",)
    assert pool.adapters() == ()
    assert await said(pool) == before[0]
    assert distance(await signature(pool, None), before[1]) < CLOSE


def moved(made):
    """Every module under another prefix than the checkpoint's."""
    for name in list(made):
        made[name.replace("base_model.model.", "base_model.model.elsewhere.")] = made.pop(name)


async def test_a_prefix_that_the_engine_does_not_map(pool, sampler, trained, tmp_path):
    """What is left to the engine is refused by it, or by the proof."""
    before = await said(pool)
    with pytest.raises(AdapterError):
        await pool.load("moved", derive(trained, tmp_path / "moved", moved), prove=True)
    assert await sampler.models() == ("smollm2",)
    assert await said(pool) == before


@pytest.mark.parametrize(
    ("number", "requests"), [(7, 28), pytest.param(50, 100, marks=pytest.mark.soak)]
)
async def test_more_adapters_than_places(pool, sampler, trained, tmp_path, number, requests):
    """32 requests at a time for so many adapters: each is answered by the one it asked for.

    Their signatures are more than 1 nat apart, so that no other could have given one; they are
    talked to as well, several in one batch.
    """
    aliases = [f"variant-{seed}" for seed in range(number)]
    for seed, alias in enumerate(aliases):
        await pool.load(alias, variant(trained, tmp_path / alias, seed))
    expected, spoken = {}, {}
    for alias in aliases:
        expected[alias] = await signature(pool, alias)
        spoken[alias] = await said(pool, alias)
    apart = min(
        distance(expected[one], expected[two]) for one, two in itertools.combinations(aliases, 2)
    )
    assert apart > 1
    assert len(set(spoken.values())) > number / 2
    gate = asyncio.Semaphore(32)
    drift: list[float] = []
    wrong: list[tuple[str, str]] = []

    async def sign(alias: str) -> None:
        async with gate:
            found = await signature(pool, alias)
        drift.append(distance(found, expected[alias]))

    async def talk(alias: str) -> None:
        async with gate:
            words = await said(pool, alias)
        # a batch of another size may round otherwise; what another one says is never right
        if words != spoken[alias] and words in spoken.values():
            wrong.append((alias, words))

    asked = [aliases[place * 3 % number] for place in range(requests)]
    # one after the other: on a CPU with LoRA, a request for prompt log-probabilities in one batch
    # with any other request kills the engine
    for ask in (sign, talk):
        await asyncio.gather(*(ask(alias) for alias in asked))
    assert max(drift) < apart / 4
    assert wrong == []
    assert len(await sampler.models()) <= 1 + PLACES
    assert all(adapter.held == 0 for adapter in pool.adapters())


def narrowed(made):
    """Rank 1 of what had more."""
    for name, values in made.items():
        made[name] = values[:1] if "lora_A" in name else values[:, :1] * 4


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Between two signatures, in nats: the largest of any token."""
    return float(np.abs(one - other).max())
