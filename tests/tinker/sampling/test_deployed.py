"""Sampling from a server: its adapters, its death, and what is passed through to it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.command_line import House
from tests.support.deployments import opened
from tests.support.tiny_adapters import write_adapter

from enginehouse.core.errors import NoEffectError, TinkerError
from enginehouse.deployment.base import Deployment
from enginehouse.deployment.configuration import AskConfig, ServeConfig, parse
from enginehouse.store.layout import Layout
from enginehouse.testing.fake_engine import tokenizer
from enginehouse.testing.sampling_cases import BASE
from enginehouse.tinker.sampling.base import Sampled, TokenPrompt, Weights
from enginehouse.tinker.sampling.deployed import DeployedSampling, deployed_sampling
from enginehouse.weights.proof import Effect
from enginehouse.weights.served_models import served_models

EFFECT = Effect(largest_difference=1.0, mean_difference=1.0, tokens=2, noise=0.0)


def _prompt(**fields: Any) -> TokenPrompt:
    tokens = np.array(tokenizer.encode("Say something"), np.int32)
    return TokenPrompt(tokens=tokens, **{"max_tokens": 6, "temperature": 0.0} | fields)


def _weights(tmp_path: Path, name: str, **how: Any) -> Weights:
    seed = sum(map(ord, name))
    folder = write_adapter(tmp_path / name, seed=seed, **how)
    return Weights(key=f"tinker://ses-1:train:0/sampler_weights/{name}", folder=folder)


def _ids(sampled: Sampled) -> list[list[int]]:
    return [sequence.tokens.tolist() for sequence in sampled.sequences]


@asynccontextmanager
async def _sampling(
    house: House, *, told: list[str] | None = None, latency: float = 0.0, **server: Any
) -> AsyncIterator[tuple[Deployment, DeployedSampling]]:
    """A fake vLLM of our own with two places for adapters."""
    options = {"enable_lora": True, "max_loras": 2, "env_vars": {}} | server
    if latency:
        options["env_vars"] = {"VLLM_FAKE_TOKEN_LATENCY": str(latency)}
    plan = parse(ServeConfig, {"model": str(house.model()), "server": options}, origin="test")
    notify = (told if told is not None else []).append
    async with (
        opened(plan, layout=Layout.from_environment(), notify=print) as deployment,
        deployed_sampling(
            deployment, logprobs="raw", max_loras=2, at_once=3, notify=notify
        ) as engine,
    ):
        yield deployment, engine


async def _listed(deployment: Deployment) -> list[str]:
    models = await served_models(deployment.server, deployment.engine)
    return [model.root or "" for model in models if model.parent]


@pytest.mark.slow
async def test_an_adapter_answers_beside_the_base(house: House, tmp_path: Path):
    """It is loaded from where it is, proven, once however many ask."""
    mine = _weights(tmp_path, "mine")
    async with _sampling(house) as (deployment, engine):
        base, *adapted = await asyncio.gather(
            engine.sample(BASE, _prompt()), *(engine.sample(mine, _prompt()) for _ in range(5))
        )
        assert _ids(base) != _ids(adapted[0])
        assert [_ids(one) for one in adapted] == [_ids(adapted[0])] * 5
        assert await _listed(deployment) == [str(mine.folder)]
        (pooled,) = engine.pool.adapters()
        assert pooled.effect is not None
        described = engine.description
        assert described["adapters"] == described["resident"] == [mine.key]
        assert (described["engine"], described["log_probabilities"]) == ("vllm", "raw")
        await engine.forget(mine)
        await engine.forget(mine)
        assert await _listed(deployment) == []
        assert engine.description["adapters"] == []
        assert _ids(await engine.sample(mine, _prompt())) == _ids(adapted[0])


@pytest.mark.slow
async def test_idle_adapters_make_room(house: House, tmp_path: Path):
    """Any number may be asked; two are resident."""
    many = [_weights(tmp_path, name) for name in "abcd"]
    async with _sampling(house) as (deployment, engine):
        first = [_ids(await engine.sample(weights, _prompt())) for weights in many]
        assert len({str(ids) for ids in first}) == 4
        assert len(await _listed(deployment)) == 2
        assert [_ids(await engine.sample(weights, _prompt())) for weights in many] == first
        assert engine.description["adapters"] == [weights.key for weights in many]


@pytest.mark.slow
async def test_one_that_was_never_trained_is_not_proven(house: House, tmp_path: Path):
    """It has no effect to prove, and answers."""

    def zero(made):
        for name in made:
            if "lora_B" in name:
                made[name] *= 0

    told: list[str] = []
    async with _sampling(house, told=told) as (_, engine):
        await engine.prepare(_weights(tmp_path, "new", change=zero))
        assert engine.pool.adapters()[0].effect is None
    assert "has not been trained" in told[0]


@pytest.mark.slow
async def test_an_effect_that_rounding_hides_is_proven_on_a_larger_copy(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its modules are found if those of the same adapter with another alpha are."""
    told: list[str] = []
    alphas: list[float] = []

    async def rounding(*_: Any, info: Any, **__: Any) -> Effect:
        alphas.append(info.alpha)
        if info.alpha < 1e6:
            raise NoEffectError("nothing to see")
        return EFFECT

    monkeypatch.setattr("enginehouse.weights.loading.prove_beside_others", rounding)
    mine = _weights(tmp_path, "mine")
    async with _sampling(house, told=told) as (deployment, engine):
        assert (await engine.sample(mine, _prompt())).sequences
        assert await _listed(deployment) == [str(mine.folder)]
    assert alphas == [8.0, 8e3, 8e6]
    assert "changes less than rounding" in told[0]
    assert not list(tmp_path.glob(".*"))  # noqa: ASYNC240 (the block has ended)


@pytest.mark.slow
async def test_one_copy_proves_a_set_of_modules(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What the engine applies does not depend on values: the next faint adapter needs no copy."""
    alphas: list[float] = []

    async def rounding(*_: Any, info: Any, **__: Any) -> Effect:
        alphas.append(info.alpha)
        if info.alpha < 100:
            raise NoEffectError("nothing to see")
        return EFFECT

    monkeypatch.setattr("enginehouse.weights.loading.prove_beside_others", rounding)
    async with _sampling(house) as (_, engine):
        for name in "ab":
            await engine.prepare(_weights(tmp_path, name))
    assert alphas == [8.0, 8e3, 8.0]


@pytest.mark.slow
async def test_one_without_any_effect_is_refused(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The base never answers in its stead, and nobody else notices."""

    async def none(*_: Any, **__: Any) -> Effect:
        raise NoEffectError("it has no effect", fix="look at its names")

    monkeypatch.setattr("enginehouse.weights.loading.prove_beside_others", none)
    async with _sampling(house) as (deployment, engine):
        for _ in range(2):
            with pytest.raises(TinkerError, match="no effect") as caught:
                await engine.sample(_weights(tmp_path, "mine"), _prompt())
            assert caught.value.category == "server"
        async with asyncio.timeout(20):
            while await _listed(deployment):  # noqa: ASYNC110 - the server's doing
                await asyncio.sleep(0.01)
        assert (await engine.sample(BASE, _prompt())).sequences


@pytest.mark.slow
@pytest.mark.parametrize("acts", [True, False])
async def test_answers_are_withheld_until_the_proof(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, acts: bool
):
    """It is made while the first requests are computed; a stream begins after it."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(*_: Any, **__: Any) -> Effect:
        begun.set()
        await go_on.wait()
        if not acts:
            raise NoEffectError("it has no effect")
        return EFFECT

    monkeypatch.setattr("enginehouse.weights.loading.prove_beside_others", slow)
    mine = _weights(tmp_path, "mine")
    body = {"prompt": "Say something", "max_tokens": 2, "stream": True}
    async with _sampling(house) as (_, engine):
        asked = [
            asyncio.create_task(engine.sample(mine, _prompt())),
            asyncio.create_task(engine.stream(mine, "/v1/completions", body)),
            asyncio.create_task(engine.prepare(mine)),
        ]
        await begun.wait()
        assert len((await engine.sample(BASE, _prompt())).sequences) == 1
        assert not any(task.done() for task in asked)
        go_on.set()
        done = await asyncio.gather(*asked, return_exceptions=True)
        if acts:
            sampled, streamed, _ = done
            assert isinstance(sampled, Sampled)
            assert [piece async for piece in streamed][-1].endswith(b"[DONE]\n\n")
        else:
            assert [type(one) for one in done] == [TinkerError] * 3


@pytest.mark.slow
async def test_it_ends_during_a_proof(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nothing is left running, whether the adapter is forgotten or the engine is closed."""
    begun = ended = 0

    async def endless(*_: Any, **__: Any) -> Effect:
        nonlocal begun, ended
        begun += 1
        try:
            await asyncio.Event().wait()
        finally:
            ended += 1
        return EFFECT

    monkeypatch.setattr("enginehouse.weights.loading.prove_beside_others", endless)
    mine, other = _weights(tmp_path, "mine"), _weights(tmp_path, "other")
    async with _sampling(house) as (deployment, engine):
        waiting = [asyncio.create_task(engine.prepare(weights)) for weights in (mine, other)]
        async with asyncio.timeout(20):
            while begun < 2:  # noqa: ASYNC110 - the server's doing
                await asyncio.sleep(0.01)
        await engine.forget(mine)
        assert await _listed(deployment) == [str(other.folder)]
    done = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(one) for one in done] == [TinkerError] * 2
    assert "removed while they were asked" in str(done[0])
    assert ended == 2


@pytest.mark.slow
async def test_a_folder_that_is_no_adapter(house: House, tmp_path: Path):
    """An error that says what is missing."""
    (tmp_path / "empty").mkdir()
    async with _sampling(house) as (_, engine):
        with pytest.raises(TinkerError, match="PEFT"):
            await engine.prepare(Weights(key="empty", folder=tmp_path / "empty"))


@pytest.mark.slow
async def test_the_engine_is_killed(house: House, tmp_path: Path):
    """Every request is answered by the next one, whose adapters were loaded and proven again."""
    many = [_weights(tmp_path, name) for name in "ab"]
    async with _sampling(house, latency=0.02) as (deployment, engine):
        wanted = [_ids(await engine.sample(weights, _prompt())) for weights in many]
        pid = deployment.server.pid
        asked = [asyncio.create_task(engine.sample(w, _prompt())) for w in many for _ in range(3)]
        async with asyncio.timeout(30):
            while deployment.sampler.in_flight < 4:  # noqa: ASYNC110 - the server's doing
                await asyncio.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        given = [_ids(one) for one in await asyncio.gather(*asked)]
        assert given == [ids for ids in wanted for _ in range(3)]
        assert deployment.server.pid != pid
        assert sorted(await _listed(deployment)) == sorted(str(w.folder) for w in many)


@pytest.mark.slow
async def test_an_adapter_that_cannot_be_restored(house: House, tmp_path: Path):
    """Only requests for it fail: with a folder that is gone, until it is there again."""
    mine, other = (_weights(tmp_path, name) for name in "ab")
    async with _sampling(house) as (deployment, engine):
        wanted = {w.key: _ids(await engine.sample(w, _prompt())) for w in (mine, other)}
        (tmp_path / "a").rename(tmp_path / "elsewhere")
        pid = deployment.server.pid
        os.kill(pid, signal.SIGKILL)
        assert _ids(await engine.sample(other, _prompt())) == wanted[other.key]
        assert deployment.server.pid != pid
        for _ in range(2):
            with pytest.raises(TinkerError):
                await engine.sample(mine, _prompt())
        (tmp_path / "elsewhere").rename(tmp_path / "a")
        assert _ids(await engine.sample(mine, _prompt())) == wanted[mine.key]


@pytest.mark.slow
@pytest.mark.parametrize("acts", [True, False])
@pytest.mark.parametrize("faint", [True, False])
async def test_everything_is_proven_again_after_a_restart(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, acts: bool, faint: bool
):
    """Also what was not loaded at that moment, and what only a larger copy speaks for."""
    proofs: list[str] = []
    dead = False

    async def prove(_: Any, *, model: str, info: Any, **__: Any) -> Effect:
        proofs.append(model)
        if (dead and not acts) or (faint and info.alpha < 100):
            raise NoEffectError("nothing to see")
        return EFFECT

    monkeypatch.setattr("enginehouse.weights.loading.prove_beside_others", prove)
    many = [_weights(tmp_path, name) for name in "abc"]  # for two places
    async with _sampling(house) as (deployment, engine):
        wanted = [_ids(await engine.sample(weights, _prompt())) for weights in many]
        dead = True
        os.kill(deployment.server.pid, signal.SIGKILL)
        proofs.clear()
        for weights, ids in zip(many, wanted, strict=True):
            if acts:
                assert _ids(await engine.sample(weights, _prompt())) == ids
            else:
                with pytest.raises(TinkerError):
                    await engine.sample(weights, _prompt())
        names = {adapter.model for adapter in engine.pool.adapters()}
        assert not acts or names <= set(proofs)
        proofs.clear()
        if acts:
            await asyncio.gather(*(engine.sample(weights, _prompt()) for weights in many))
            assert proofs == []


@pytest.mark.slow
async def test_a_faint_one_that_is_answered_by_the_next_life(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """An answer that began before the restart and was made after it waits for a new proof."""
    proofs: list[float] = []
    dead = False

    async def prove(_: Any, *, info: Any, **__: Any) -> Effect:
        proofs.append(info.alpha)
        if dead or info.alpha < 100:
            raise NoEffectError("nothing to see")
        return EFFECT

    monkeypatch.setattr("enginehouse.weights.loading.prove_beside_others", prove)
    mine = _weights(tmp_path, "mine")
    async with _sampling(house, latency=0.02) as (deployment, engine):
        await engine.prepare(mine)
        asked = [asyncio.create_task(engine.sample(mine, _prompt())) for _ in range(3)]
        async with asyncio.timeout(30):
            while deployment.sampler.in_flight < 3:  # noqa: ASYNC110 - the server's doing
                await asyncio.sleep(0.01)
        dead = True
        os.kill(deployment.server.pid, signal.SIGKILL)
        done = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(one) for one in done] == [TinkerError] * 3


@pytest.mark.slow
async def test_an_openai_body_is_passed_on(house: House, tmp_path: Path):
    """Only `model` is replaced; the reply has the caller's name for it."""
    mine = _weights(tmp_path, "mine")
    body = {"model": "tinker://x", "prompt": "Say something", "max_tokens": 6, "temperature": 0}
    async with _sampling(house) as (_, engine):
        reply = await engine.complete(mine, "/v1/completions", body | {"return_token_ids": True})
        assert reply["model"] == "tinker://x"
        assert reply["choices"][0]["token_ids"] == _ids(await engine.sample(mine, _prompt()))[0]
        chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
        reply = await engine.complete(mine, "/v1/chat/completions", chat)
        assert reply["choices"][0]["message"]["content"]
        with pytest.raises(TinkerError, match="logprobs") as caught:
            await engine.complete(mine, "/v1/completions", body | {"logprobs": 9999})
        assert (caught.value.category, caught.value.status) == ("user", 400)


@pytest.mark.slow
async def test_a_stream_holds_its_adapter(house: House, tmp_path: Path):
    """Until it was read to its end or is closed; then its place is free for another."""
    mine, other = _weights(tmp_path, "mine"), _weights(tmp_path, "other")
    body = {"prompt": "Say something", "max_tokens": 8, "stream": True, "temperature": 0}
    async with _sampling(house, max_loras=1) as (_, engine):
        whole = await engine.stream(mine, "/v1/completions", body)
        waiting = asyncio.create_task(engine.sample(other, _prompt()))
        pieces = b"".join([piece async for piece in whole])
        assert pieces.rstrip().endswith(b"data: [DONE]")
        assert (await waiting).sequences
        unread = await engine.stream(mine, "/v1/completions", body)
        (held,) = [adapter for adapter in engine.pool.adapters() if adapter.held]
        await unread.aclose()
        await unread.aclose()
        assert held.held == 0
        assert (await engine.sample(other, _prompt())).sequences
        with pytest.raises(TinkerError):
            await engine.stream(mine, "/v1/completions", body | {"max_tokens": 0})
        assert all(adapter.held == 0 for adapter in engine.pool.adapters())


@pytest.mark.slow
async def test_somebody_elses_server(house: House, tmp_path: Path):
    """Adapters are loaded into it while it is used, and unloaded at the end."""
    mine = _weights(tmp_path, "mine")
    async with _sampling(house) as (deployment, _):
        plan = parse(AskConfig, {"url": deployment.url, "engine": "vllm"}, origin="test")
        async with (
            opened(plan, layout=Layout.from_environment(), notify=print) as attached,
            deployed_sampling(
                attached, logprobs="raw", max_loras=1, at_once=3, notify=print
            ) as engine,
        ):
            assert _ids(await engine.sample(mine, _prompt())) != _ids(
                await engine.sample(BASE, _prompt())
            )
            assert await _listed(deployment) == [str(mine.folder)]
        assert await _listed(deployment) == []


@pytest.mark.slow
async def test_no_tokens_and_greedy_samples(house: House):
    """max_tokens 0 asks the engine for nothing; greedy samples are asked once."""
    async with _sampling(house) as (_, engine):
        nothing = await engine.sample(BASE, _prompt(max_tokens=0, samples=2))
        assert _ids(nothing) == [[], []]
        three = _ids(await engine.sample(BASE, _prompt(samples=3)))
        assert three == [three[0]] * 3
        scored = await engine.sample(BASE, _prompt(prompt_logprobs_from=1, samples=2))
        assert scored.prompt_logprobs is not None
        assert np.isnan(scored.prompt_logprobs).tolist() == [True] + [False] * 4


async def test_many_samples_are_asked_in_parts(house: House):
    """Of as many as one user may have in the engine, each part with the seeds that follow."""
    async with _sampling(house) as (_, engine):
        seven = _ids(await engine.sample(BASE, _prompt(samples=7, seed=5, temperature=1.0)))
        parts = [
            _ids(await engine.sample(BASE, _prompt(samples=n, seed=seed, temperature=1.0)))
            for n, seed in ((3, 5), (3, 8), (1, 11))
        ]
        assert seven == [ids for part in parts for ids in part]
