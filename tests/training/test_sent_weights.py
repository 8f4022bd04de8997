"""Weights that another process sends into a server of ours, and what answers when it fails."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.support.command_line import House
from tests.support.deployments import opened
from tests.support.tiny_checkpoints import write_checkpoint

from enginehouse import SampleRequest, SampleResponse, SamplingParameters, TextPrompt
from enginehouse.client.wire import InFlight
from enginehouse.core.errors import WeightsError
from enginehouse.deployment.base import Deployment
from enginehouse.deployment.configuration import ServeConfig, parse
from enginehouse.deployment.swapping import weights_info
from enginehouse.engines.vllm.wire import VLLM_WEIGHTS
from enginehouse.store.layout import Layout
from enginehouse.weights.checkpoint import digest_of
from enginehouse.weights.declared import Weights
from enginehouse.weights.replacement import Send, WeightLoader

TRANSFER = VLLM_WEIGHTS.transfer
assert TRANSFER is not None
CONFIG = ["--weight-transfer-config", '{"backend": "fake"}']


@pytest.fixture
def layout(house: House) -> Layout:
    """The machine's."""
    return Layout.from_environment()


@pytest.fixture
def served(house: House, tmp_path: Path):
    """Serve checkpoint `a` with these faults, whose counts outlive the process."""
    write_checkpoint(tmp_path / "a", seed=1)
    write_checkpoint(tmp_path / "b", seed=2)

    def make(*faults: dict, extra: list[str] = CONFIG, **variables: str) -> ServeConfig:
        env = {
            "VLLM_FAKE_FAULTS": json.dumps(list(faults)),
            "VLLM_FAKE_STATE": str(tmp_path / "counts"),
        }
        server = {"env_vars": env | variables, "extra_args": extra, "enable_weight_swap": True}
        values = {"model": str(tmp_path / "a"), "server": server}
        return parse(ServeConfig, values, origin="test")

    return make


async def nothing() -> None:
    """No event."""


def sending(
    seed: int, *, between: Callable[[], Awaitable[Any]] = nothing, last: object = None
) -> WeightLoader:
    """Weights in two parts, with something `between`; the last part is as it should be, or not."""

    async def load(weights: Weights, *, send: Send) -> None:
        assert weights.path is None
        await send(TRANSFER.start)
        await send(TRANSFER.update({"names": ["a"], "seed": seed}))
        await between()
        await send(TRANSFER.update(last or {"names": ["b"], "seed": seed}))
        await send(TRANSFER.finish)

    return load


async def ask(ready: Deployment, *, tokens: int = 8) -> SampleResponse:
    """The answer to always the same question."""
    parameters = SamplingParameters(max_tokens=tokens, ignore_eos=True)
    return await ready.sampler.sample(SampleRequest(prompt=TextPrompt("x"), parameters=parameters))


async def until(condition) -> None:
    """Wait for a condition, at most half a minute."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - other processes bring it about
            await asyncio.sleep(0.02)


async def killed(ready: Deployment, incidents: list) -> None:
    """Kill the server, and wait until somebody has seen it."""
    before = len(incidents)
    os.kill(ready.server.pid, signal.SIGKILL)
    await until(lambda: len(incidents) > before)


@pytest.mark.slow
async def test_they_answer_until_a_restart(served, layout, tmp_path):
    """Samples name what answered them: what was sent, and then the last that were on the disk."""
    incidents: list = []
    async with opened(served(), layout=layout, incidents=incidents) as ready:
        first = await ask(ready)
        done = await ready.weights.receive("step-1", sending(1))
        assert (done.before.path, done.after.path, done.after.version) == (tmp_path / "a", None, 1)
        sent = await ask(ready)
        assert sent.completions != first.completions
        assert sent.weights_digest == done.after.digest
        assert sent.weights_digest.startswith("sent-")
        assert sent.weights_digest.endswith("-step-1")
        info = await weights_info(ready.server.name, layout=layout)
        assert (info.path, info.declared) == (None, tmp_path / "a")
        assert (info.named, info.agrees) == (f"1-{done.after.digest}", True)

        again = await ready.weights.receive("step-1", sending(1))
        assert (await ask(ready)).completions == sent.completions
        assert again.after.digest != done.after.digest  # nobody has compared the two

        await killed(ready, incidents)
        back = await ask(ready)
        assert (back.completions, back.weights_digest) == (first.completions, first.weights_digest)
        assert ready.weights.current == ready.weights.declared

        await ready.weights.swap(tmp_path / "b")
        on_disk = await ask(ready)
        await ready.weights.receive("step-2", sending(2))
        assert (await ask(ready)).completions != on_disk.completions
        await killed(ready, incidents)
        back = await ask(ready)
        assert back.completions == on_disk.completions
        assert back.weights_digest == digest_of(tmp_path / "b", layout=layout)
        info = await weights_info(ready.server.name, layout=layout)
        assert (info.path, info.agrees) == (tmp_path / "b", True)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["start_weight_update", "update_weights", "finish_weight_update"])
async def test_killed_in_the_middle(served, layout, path):
    """The restart brings the declared weights, and who asks meanwhile is answered by them."""
    die = {"fault": "die", "path": f"/{path}", "nth": [1], "signal": signal.SIGKILL}
    async with opened(served(die), layout=layout) as ready:
        old = await ask(ready)
        transfer = asyncio.create_task(ready.weights.receive("step-1", sending(1)))
        await asyncio.sleep(0)
        meanwhile = asyncio.create_task(ask(ready))
        with pytest.raises(WeightsError, match="started again") as caught:
            await transfer
        assert not caught.value.restored
        for answer in (await meanwhile, await ask(ready)):
            assert answer.completions == old.completions
            assert answer.weights_digest == old.weights_digest
        await ready.weights.receive("step-1", sending(1))
        assert (await ask(ready)).completions != old.completions


@pytest.mark.slow
async def test_a_part_that_fails_is_taken_back(served, layout, tmp_path):
    """Nothing of what came before it is left in the weights that were on the disk."""
    async with opened(served(), layout=layout) as ready:
        old = await ask(ready)
        with pytest.raises(WeightsError, match="old ones") as caught:
            await ready.weights.receive("bad", sending(1, last={"no": "names"}))
        assert caught.value.restored
        assert "the transfer: the server answered 500: Invalid update_info" in caught.value.why
        back = await ask(ready)
        assert (back.completions, back.weights_digest) == (old.completions, old.weights_digest)

        done = await ready.weights.receive("good", sending(2))
        with pytest.raises(WeightsError) as caught:
            await ready.weights.receive("bad", sending(3, last={"no": "names"}))
        assert not caught.value.restored
        assert f"those in {tmp_path / 'a'} answer" in caught.value.message
        assert f"{done.after.digest} is lost, as it was on no disk" in caught.value.message
        back = await ask(ready)
        assert (back.completions, back.weights_digest) == (old.completions, old.weights_digest)


@pytest.mark.slow
async def test_a_sender_that_was_killed_leaves_nothing_behind(served, layout, tmp_path):
    """The next swap from the disk, and the next transfer, are not spoiled by what it had sent."""
    async with opened(served(), layout=layout) as ready:
        await ready.weights.swap(tmp_path / "b")
        wanted = await ask(ready)
        await ready.weights.receive("step-1", sending(1))
        sent = await ask(ready)
        for once_more in (ready.weights.swap(tmp_path / "b"), None):
            key = {"Authorization": f"Bearer {ready.server.admin_key}"}
            async with aiohttp.ClientSession(ready.url, headers=key) as session:
                for path, body in (
                    ("/update_weight_version", {"new_version": "loading 9-other"}),
                    ("/start_weight_update", None),
                    ("/update_weights", {"update_info": {"names": ["a"], "seed": 9}}),
                ):
                    async with session.post(path, json=body) as reply:
                        assert reply.status == 200
            if once_more is not None:
                await once_more
                assert (await ask(ready)).completions == wanted.completions
            else:
                await ready.weights.receive("step-1", sending(1))
                assert (await ask(ready)).completions == sent.completions


@pytest.mark.slow
async def test_what_is_not_touched_goes_on_answering(served, layout):
    """A drain that takes too long loses nothing, though what answers is on no disk."""
    slow = served(VLLM_FAKE_TOKEN_LATENCY="0.02")
    async with opened(slow, layout=layout) as ready:
        done = await ready.weights.receive("step-1", sending(1))
        sent = await ask(ready)
        under_way = asyncio.create_task(ask(ready, tokens=100))
        await until(lambda: ready.sampler.in_flight)
        with pytest.raises(WeightsError, match="old ones") as caught:
            await ready.weights.receive("step-2", sending(2), deadline=0.2)
        assert caught.value.restored
        answer = await ask(ready)
        assert (answer.completions, answer.weights_digest) == (sent.completions, done.after.digest)
        assert (await under_way).weights_digest == done.after.digest


@pytest.mark.slow
@pytest.mark.parametrize("in_flight", ["drain", "abort"])
async def test_requests_in_flight(served, layout, in_flight: InFlight):
    """Drained, they end with the old weights; given up, they are asked again of the new ones."""
    slow = served(VLLM_FAKE_TOKEN_LATENCY="0.01")
    async with opened(slow, layout=layout, concurrency=8) as ready:
        old = await ask(ready)
        under_way = [asyncio.create_task(ask(ready, tokens=100)) for _ in range(4)]
        await until(lambda: ready.sampler.in_flight == 4)
        done = await ready.weights.receive("step-1", sending(1), in_flight=in_flight)
        expected = old.weights_digest if in_flight == "drain" else done.after.digest
        assert {(await answer).weights_digest for answer in under_way} == {expected}


@pytest.mark.slow
async def test_a_server_that_cannot_go_on_is_started_again(served, layout):
    """A transfer that hangs, and an engine that hangs with it: the deadline, then a restart."""
    hang = {"fault": "hang", "path": "/(update_weights|collective_rpc)", "nth": [1, 2, 3]}
    async with opened(served(hang), layout=layout) as ready:
        old, pid = await ask(ready), ready.server.pid
        with pytest.raises(WeightsError, match="started again") as caught:
            await ready.weights.receive("step-1", sending(1), deadline=0.5)
        assert caught.value.why == "the transfer: not done within 0.5 s"
        answer = await ask(ready)
        assert (answer.completions, answer.weights_digest) == (old.completions, old.weights_digest)
        assert ready.server.pid != pid
