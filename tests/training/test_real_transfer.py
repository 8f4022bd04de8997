"""Weights sent into a real vLLM on the CPU, through a backend of this test's own (a plug-in).

What is vLLM's of the way that the data goes on GPUs, NCCL and CUDA IPC, is not tried here.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
from tests.support import SUPPORT
from tests.support.changed_checkpoint import changed_checkpoint
from tests.support.deployments import opened

from enginehouse import SampleRequest, SampleResponse, SamplingParameters, TextPrompt
from enginehouse.commands.serve import serve_until_stopped
from enginehouse.core.errors import WeightsError, WireError
from enginehouse.deployment.configuration import ServeConfig, parse
from enginehouse.deployment.swapping import weights_info
from enginehouse.engines.vllm.wire import VLLM_WEIGHTS
from enginehouse.runtime.context import Context
from enginehouse.servers.endpoint import Server
from enginehouse.store.layout import Layout
from enginehouse.training import WeightSender
from enginehouse.weights.declared import Weights
from enginehouse.weights.replacement import Send, WeightLoader

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("smollm2")]
NORM = "model.layers.3.post_attention_layernorm.weight"
QUERY = "model.layers.3.self_attn.q_proj.weight"  # a third of a tensor of vLLM's
STORY = "The keeper of the engine house wrote into his book that every mill had drawn steam. " * 4
ASKED = SampleRequest(
    prompt=TextPrompt(STORY), parameters=SamplingParameters(max_tokens=24, ignore_eos=True)
)
TRANSFER = VLLM_WEIGHTS.transfer
assert TRANSFER is not None


@pytest.fixture
def shared(tmp_path: Path) -> Layout:
    """The user's caches; records and leases of this test's own."""
    return replace(Layout.from_environment(), state=tmp_path / "state")


@pytest.fixture
def config(tmp_path: Path) -> ServeConfig:
    """SmolLM2, on a vLLM that finds the plug-in."""
    plugin = tmp_path / "plugin"
    about = plugin / "file_transfer-0.0.dist-info"
    about.mkdir(parents=True)
    shutil.copy(SUPPORT / "file_transfer.py", plugin)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: file_transfer\nVersion: 0.0\n")
    (about / "entry_points.txt").write_text(
        "[vllm.general_plugins]\nfile_transfer = file_transfer:register\n"
    )
    server = {
        "dtype": "float32",  # the same question has one answer, cached or not
        "env_vars": {"PYTHONPATH": str(plugin)},
        "extra_args": "--weight-transfer-config.backend file",
        "enable_weight_swap": True,
    }
    return parse(ServeConfig, {"model": "smollm2", "server": server}, origin="test")


def parts(folder: Path) -> Iterator[dict[str, Any]]:
    """A checkpoint's tensors, in updates of 40."""
    file = folder / "model.safetensors"
    with safetensors.safe_open(file, framework="numpy") as opened:
        names = list(opened.keys())
    for first in range(0, len(names), 40):
        yield {"file": str(file), "names": names[first : first + 40]}


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


async def test_weights_are_sent_into_a_real_vllm(shared: Layout, config: ServeConfig, tmp_path):
    """Greedy output becomes that of the other weights, and is the old one exactly, swapped back.

    So it is after a sender that raised with layers half sent, and after an update that failed.
    """
    async with opened(config, layout=shared, notify=print, concurrency=8) as ready:
        sampler, weights = ready.sampler, ready.weights
        assert weights is not None
        assert ready.model is not None
        original = Path(ready.model.path)
        other = changed_checkpoint(original, tmp_path / "other", tensor=NORM, factor=4.0)
        odd = changed_checkpoint(original, tmp_path / "odd", tensor=QUERY, factor=8.0)
        old = await sampler.sample(ASKED)
        await weights.swap(other)
        expected = await sampler.sample(ASKED)
        await weights.swap(original)
        assert same(await sampler.sample(ASKED), old)

        done = await weights.receive("step-1", sending(list(parts(other))))
        sent = await sampler.sample(ASKED)
        assert sent.completions == expected.completions != old.completions
        assert sent.weights_digest == done.after.digest
        assert done.after.digest.endswith("-step-1")
        info = await weights_info(ready.server.name, layout=shared)
        assert (info.path, info.declared, info.agrees) == (None, original, True)
        await weights.swap(original)
        assert same(await sampler.sample(ASKED), old)

        half = {"file": str(odd / "model.safetensors"), "names": [QUERY]}
        broken = WeightsError("the trainer's process is out of memory", kind="sender")
        unknown = {**half, "names": ["no such tensor"]}
        for updates, fault in (([half], broken), ([half, unknown], None)):
            with pytest.raises(WeightsError, match="the old ones answer as before") as caught:
                await weights.receive("step-2", sending(updates, broken=fault))
            assert caught.value.restored
            assert same(await sampler.sample(ASKED), old)

        await weights.receive("step-3", sending(list(parts(other))))
        assert (await sampler.sample(ASKED)).completions == expected.completions
        with pytest.raises(WeightsError, match="lost, as it was on no disk"):
            await weights.receive("step-4", sending([half], broken=broken))
        assert same(await sampler.sample(ASKED), old)


@asynccontextmanager
async def kept(config: ServeConfig, layout: Layout) -> AsyncIterator[Server]:
    """What `enginehouse serve --name mine` does."""
    found: asyncio.Future[Server] = asyncio.get_running_loop().create_future()
    work = serve_until_stopped(config, Context(layout=layout), name="mine", ready=found.set_result)
    task = asyncio.create_task(work)
    await asyncio.wait({task, found}, return_when=asyncio.FIRST_COMPLETED)
    try:
        yield found.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Trainer:
    """Drives the client as vLLM's end in a trainer's process does."""

    def __init__(self, sender: WeightSender, folder: Path) -> None:
        self.client = sender.client
        self.folder = folder
        self.client.init_weight_transfer_engine({})

    def send_weights(self) -> None:
        """All of them."""
        self.client.start_weight_update()
        for update in parts(self.folder):
            self.client.update_weights(update)
        self.client.finish_weight_update()


async def is_back(layout: Layout) -> bool:
    """Whether it was started again, and restored."""
    try:
        info = await weights_info("mine", layout=layout)
    except WireError:
        return False
    return info.named == "default" and info.path is not None


async def test_from_a_trainers_process_to_a_server_of_another(
    shared: Layout, config: ServeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """WeightSender by the server's name; killed after that, it has what is on the disk."""
    monkeypatch.setattr(Layout, "from_environment", classmethod(lambda _: shared))
    async with kept(config, shared) as server:
        before = await weights_info("mine", layout=shared)
        assert before.path is not None
        other = changed_checkpoint(before.path, tmp_path / "other", tensor=NORM, factor=4.0)

        def train() -> int:
            sender = WeightSender("mine")
            sender.send(Trainer(sender, other).send_weights, name="step-1", in_flight="abort")
            return sender.world_size()

        assert await asyncio.to_thread(train) == 1
        info = await weights_info("mine", layout=shared)
        assert (info.path, info.version, info.agrees) == (None, 1, True)
        assert info.named is not None
        assert info.named.endswith("-step-1")

        os.kill(server.pid or 0, signal.SIGKILL)
        async with asyncio.timeout(600):
            while not await is_back(shared):  # noqa: ASYNC110 - the server brings it about
                await asyncio.sleep(0.1)
        info = await weights_info("mine", layout=shared)
        assert (info.path, info.digest, info.agrees) == (before.path, before.digest, True)
