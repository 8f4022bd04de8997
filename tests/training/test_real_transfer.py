"""Weights sent from a trainer's process into a real vLLM on the CPU, through a plug-in's backend.

What vLLM itself does to send weights between GPUs, NCCL and CUDA IPC, is not tried here.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.changed_checkpoint import changed_checkpoint
from tests.support.transfer_plugin import transfer_settings, updates_of

from enginehouse.commands.serve import serve_until_stopped
from enginehouse.core.errors import WireError
from enginehouse.deployment.configuration import ServeConfig, parse
from enginehouse.deployment.swapping import weights_info
from enginehouse.runtime.context import Context
from enginehouse.servers.endpoint import Server
from enginehouse.store.layout import Layout
from enginehouse.training import WeightSender

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("smollm2")]
NORM = "model.layers.3.post_attention_layernorm.weight"


@pytest.fixture
def shared(tmp_path: Path) -> Layout:
    """The user's caches; records and leases of this test's own."""
    return replace(Layout.from_environment(), state=tmp_path / "state")


@pytest.fixture
def config(tmp_path: Path) -> ServeConfig:
    """SmolLM2, on a vLLM that finds the plug-in."""
    settings = {"model": "smollm2", "server": transfer_settings(tmp_path / "plugin")}
    return parse(ServeConfig, settings, origin="test")


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
        for update in updates_of(self.folder):
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
