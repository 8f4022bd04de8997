"""A disk that fills up under a service: who fills it is told, and everybody else goes on."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.small_disks import small_disk
from tests.support.tinker_client import (
    PROTOBUF,
    FailedError,
    House,
    RefusedError,
    Running,
    loss_request,
)

TOKENS = list(range(20, 40))
LARGE = [index % 40 for index in range(2049)]  # a body of more than 32 KB


class Disk:
    """A small disk, and a file that fills it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._filler = place / "filler"

    def leave(self, part: float) -> None:
        """Leave this part of the disk free."""
        self._filler.unlink(missing_ok=True)
        usage = shutil.disk_usage(self.place)
        with self._filler.open("wb") as file:
            if size := int(usage.free - part * usage.total) // 4096 * 4096:
                os.posix_fallocate(file.fileno(), 0, size)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """One of 200 MB."""
    with small_disk(tmp_path / "disk") as own:
        own.resize(200_000)
        yield Disk(own.place)


async def test_a_disk_that_fills_up(disk: Disk):
    """Saves are refused first, then large bodies; what was accepted is answered."""
    async with House(disk.place / "home").open() as running:
        try:
            await _fill(disk, running)
        finally:
            disk.leave(1 / 2)  # or the service's end would hide the error


async def _fill(disk: Disk, running: Running) -> None:
    ada, bob = await running.client("ada").begin(), await running.client("bob").begin()
    hers, his = await ada.create_model(), await bob.create_model()
    sampler = await bob.sampler()
    save = {"model_id": hers, "path": "one"}

    disk.leave(1 / 30)
    with pytest.raises(FailedError, match=r"not saved: .* full") as failed:
        await ada.done("save_weights", save | {"seq_id": 1})
    assert failed.value.category == "server"
    await bob.compute(his, 1, LARGE)
    await bob.step(his, 2)
    assert await bob.sample(sampler, TOKENS)
    await (await running.client("eve").begin()).create_model()

    disk.leave(1 / 100)
    with pytest.raises(RefusedError, match="large requests wait") as refused:
        await bob.compute(his, 3, LARGE)
    assert refused.value.status == 429
    await ada.compute(hers, 2, TOKENS)
    assert await bob.sample(sampler, TOKENS)

    disk.leave(0)
    status, seq_id = 200, 2
    while status == 200:  # until the journal's last block is full
        seq_id += 1
        body = loss_request(hers, seq_id, TOKENS)
        try:
            await ada.post("forward_backward", body, **PROTOBUF)
        except RefusedError as error:
            status = error.status
    assert status == 500

    disk.leave(1 / 2)
    async with asyncio.timeout(30):
        await bob.compute(his, 3, LARGE)
        await ada.compute(hers, seq_id, TOKENS)
        saved = await ada.done("save_weights", save | {"seq_id": seq_id + 1})
    assert saved["path"].endswith("/weights/one")
