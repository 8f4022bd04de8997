"""Full weights swapped in a real vLLM, or sent into it through a plug-in's backend.

They are SmolLM2's, the same with one norm changed, and with NaN. What vLLM itself does to send them
between GPUs, NCCL and CUDA IPC, is not tried here.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from tests.support.changed_checkpoint import as_float32, changed_checkpoint
from tests.support.command_line import SMALL_VLLM
from tests.support.deployments import opened
from tests.support.transfer_plugin import transfer_settings, updates_of

from enginehouse import SampleRequest, SampleResponse, SamplingParameters, TextPrompt
from enginehouse.core.errors import ModelError, WeightsError
from enginehouse.deployment.base import Deployment
from enginehouse.deployment.configuration import ServeConfig, parse
from enginehouse.deployment.swapping import weights_info
from enginehouse.engines.vllm.wire import VLLM_WEIGHTS
from enginehouse.servers.endpoint import Server
from enginehouse.store.layout import Layout
from enginehouse.weights.declared import Weights
from enginehouse.weights.replacement import Send, WeightLoader

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]
NORM = "model.layers.3.post_attention_layernorm.weight"
QUERY = "model.layers.3.self_attn.q_proj.weight"  # a third of a tensor of vLLM's
STORY = "The keeper of the engine house wrote into his book that every mill had drawn steam. " * 4
TRANSFER = VLLM_WEIGHTS.transfer
assert TRANSFER is not None


def asking(text: str = STORY, tokens: int = 24) -> SampleRequest:
    """Greedy, and as long as told; the prompt fills several blocks of the prefix cache."""
    parameters = SamplingParameters(max_tokens=tokens, ignore_eos=True)
    return SampleRequest(prompt=TextPrompt(text), parameters=parameters)


@asynccontextmanager
async def served(
    server: dict[str, Any], layout: Layout, incidents: list
) -> AsyncIterator[Deployment]:
    """SmolLM2 on a real vLLM of our own, with these settings."""
    config = parse(ServeConfig, {"model": "smollm2", "server": server}, origin="test")
    async with opened(
        config, layout=layout, notify=print, concurrency=8, incidents=incidents
    ) as ready:
        yield ready


@pytest.fixture(scope="module")
def incidents() -> list:
    """How often the server of `ready` was started again, and why."""
    return []


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> Layout:
    """The user's caches; the state is this module's own."""
    return replace(Layout.from_environment(), state=tmp_path_factory.mktemp("state"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ready(smollm2, machine, tmp_path_factory, incidents) -> AsyncIterator[Deployment]:
    """A server that computes in float32: the same question has one answer, cached or not."""
    del smollm2  # converted before the server's start is waited for
    settings = transfer_settings(tmp_path_factory.mktemp("plugin") / "plugin")
    async with served(settings, machine, incidents) as server:
        yield server


def variant(ready: Deployment, folder: Path, factor: float) -> Path:
    """The served checkpoint with a norm multiplied."""
    assert ready.model is not None
    return changed_checkpoint(Path(ready.model.path), folder, tensor=NORM, factor=factor)


async def named(server: Server) -> str:
    """What the server calls its weights."""
    key = {"Authorization": f"Bearer {server.admin_key}"}
    async with (
        aiohttp.ClientSession(server.base_url, headers=key) as session,
        session.get("/weight_info") as reply,
    ):
        return (await reply.json())["weight_version"]


async def until(look) -> None:
    """Wait for what the server brings about."""
    async with asyncio.timeout(600):
        while not await look():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_swaps_of_a_real_vllm(ready, tmp_path):
    """There and back, drained and aborted; diverged weights never reach the server."""
    sampler, weights = ready.sampler, ready.weights
    assert weights is not None
    assert ready.model is not None
    original = Path(ready.model.path)
    other = variant(ready, tmp_path / "other", 4.0)
    old = await sampler.sample(asking())
    assert old.weights_digest == ready.model.weights_digest

    done = await weights.swap(other)
    new = await sampler.sample(asking())
    assert new.completions != old.completions
    assert new.weights_digest == done.after.digest != old.weights_digest
    assert await named(ready.server) == done.after.name
    await weights.swap(original)
    back = await sampler.sample(asking())
    assert back.completions == old.completions
    assert back.weights_digest == old.weights_digest

    for in_flight, path, digest in (
        ("drain", other, old.weights_digest),
        ("abort", original, old.weights_digest),
    ):
        prompts = [asking(f"{n} {STORY}", tokens=96) for n in range(4)]
        under_way = [asyncio.create_task(sampler.sample(prompt)) for prompt in prompts]

        async def are_running() -> bool:
            load = await sampler.load()
            return load is not None and load.running == 4

        await until(are_running)
        await weights.swap(path, in_flight=in_flight)
        answers = await asyncio.gather(*under_way)
        assert {answer.weights_digest for answer in answers} == {digest}
        assert {answer.completion_tokens for answer in answers} == {96}
    assert (await sampler.sample(asking())).completions == old.completions

    with pytest.raises(ModelError, match="holds NaN"):
        await weights.swap(variant(ready, tmp_path / "diverged", math.nan))
    assert (await sampler.sample(asking())).completions == old.completions


@pytest.mark.soak  # bfloat16 is slow on most processors
async def test_other_types_in_a_real_vllm_of_bfloat16(smollm2, machine, tmp_path):
    """float32 is cast: the same values answer the same, after other ones did not.

    What overflows is found by the canary. It leaves NaN in vLLM's KV cache: only a restart takes
    that back.
    """
    del smollm2
    server = {"dtype": "bfloat16", "enable_weight_swap": True, "env_vars": SMALL_VLLM}
    async with served(server, machine, []) as ready:
        assert ready.weights is not None
        assert ready.model is not None
        original = await ready.sampler.sample(asking())
        await ready.weights.swap(variant(ready, tmp_path / "other", 4.0))
        assert (await ready.sampler.sample(asking())).completions != original.completions
        done = await ready.weights.swap(as_float32(Path(ready.model.path), tmp_path / "float32"))
        old = await ready.sampler.sample(asking())
        assert old.completions == original.completions
        assert old.weights_digest == done.after.digest != original.weights_digest

        with pytest.raises(WeightsError, match="not swapped") as caught:
            await ready.weights.swap(variant(ready, tmp_path / "overflowing", 1e36))
        assert caught.value.kind == "canary"
        again = await ready.sampler.sample(asking())
        assert (again.completions, again.weights_digest) == (old.completions, old.weights_digest)


@pytest.mark.soak  # tests/deployment/test_swapping.py kills a fake engine
async def test_a_real_vllm_killed_around_a_swap(ready, incidents, tmp_path):
    """During it: the old weights come back. After it: the new ones. Requests wait for them."""
    known = len(incidents)
    sampler, weights = ready.sampler, ready.weights
    assert weights is not None
    assert ready.model is not None
    original = Path(ready.model.path)
    other = variant(ready, tmp_path / "other", 4.0)
    old = await sampler.sample(asking())

    async def is_loading() -> bool:
        return (await named(ready.server)).startswith("loading")

    swap = asyncio.create_task(weights.swap(other))
    await until(is_loading)
    os.kill(ready.server.pid, signal.SIGKILL)
    with pytest.raises(WeightsError, match="started again"):
        await swap
    again = await sampler.sample(asking())
    assert (again.completions, again.weights_digest) == (old.completions, old.weights_digest)
    assert len(incidents) == known + 1

    done = await weights.swap(other)
    new = await sampler.sample(asking())
    assert new.completions != old.completions
    os.kill(ready.server.pid, signal.SIGKILL)
    await asyncio.sleep(0)
    again = await sampler.sample(asking())
    assert (again.completions, again.weights_digest) == (new.completions, done.after.digest)
    assert await named(ready.server) == done.after.name
    assert len(incidents) == known + 2
    await weights.swap(original)


def sending(updates: Sequence[dict[str, Any]], *, broken: Exception | None = None) -> WeightLoader:
    """What a trainer's client asks of the server."""

    async def load(weights: Weights, *, send: Send) -> None:
        await send(TRANSFER.init({}))
        await send(TRANSFER.start)
        for update in updates:
            await send(TRANSFER.update(update))
        if broken is not None:
            raise broken
        await send(TRANSFER.finish)

    return load


def same(one: SampleResponse, other: SampleResponse) -> bool:
    """Whether the same weights gave the same answer."""
    return (one.completions, one.weights_digest) == (other.completions, other.weights_digest)


async def test_weights_are_sent_into_a_real_vllm(ready, machine, tmp_path):
    """Greedy output becomes that of the other weights, and is the old one exactly, swapped back.

    So it is after a sender that raised with layers half sent, and after an update that failed.
    """
    sampler, weights = ready.sampler, ready.weights
    assert weights is not None
    assert ready.model is not None
    original = Path(ready.model.path)
    other = variant(ready, tmp_path / "other", 4.0)
    odd = changed_checkpoint(original, tmp_path / "odd", tensor=QUERY, factor=8.0)
    old = await sampler.sample(asking())
    await weights.swap(other)
    expected = await sampler.sample(asking())
    await weights.swap(original)
    assert same(await sampler.sample(asking()), old)

    done = await weights.receive("step-1", sending(list(updates_of(other))))
    sent = await sampler.sample(asking())
    assert sent.completions == expected.completions != old.completions
    assert sent.weights_digest == done.after.digest
    assert done.after.digest.endswith("-step-1")
    info = await weights_info(ready.server.name, layout=machine)
    assert (info.path, info.declared, info.agrees) == (None, original, True)
    await weights.swap(original)
    assert same(await sampler.sample(asking()), old)

    half = {"file": str(odd / "model.safetensors"), "names": [QUERY]}
    broken = WeightsError("the trainer's process is out of memory", kind="sender")
    unknown = {**half, "names": ["no such tensor"]}
    for updates, fault in (([half], broken), ([half, unknown], None)):
        with pytest.raises(WeightsError, match="old ones") as caught:
            await weights.receive("step-2", sending(updates, broken=fault))
        assert caught.value.restored
        assert same(await sampler.sample(asking()), old)

    await weights.receive("step-3", sending(list(updates_of(other))))
    assert (await sampler.sample(asking())).completions == expected.completions
    with pytest.raises(WeightsError, match="lost"):
        await weights.receive("step-4", sending([half], broken=broken))
    assert same(await sampler.sample(asking()), old)
