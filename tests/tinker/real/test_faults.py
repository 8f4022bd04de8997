"""Kills, lost answers, full disks, floods: nothing accepted is lost, and nothing applied twice."""

from __future__ import annotations

import asyncio
import random
import resource
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.support.command_line import Running, until
from tests.support.dropping_proxy import DroppingProxy
from tests.support.tinker_service import TinkerService, answers

pytestmark = pytest.mark.engine

LOSABLE = ("/api/v1/forward_backward", "/api/v1/optim_step")


def undisturbed(service: TinkerService, folder: Path, **arguments: object) -> dict[str, np.ndarray]:
    """The weights after a loop during which nothing happens."""
    file = folder / "undisturbed.safetensors"
    service.run_program("steady", download=str(file), **arguments)
    return load_file(file)


def assert_equal(weights: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """The same tensors, up to the rounding of sums in another order."""
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(weights[name], tensor, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_killed_at_seeded_moments(service: TinkerService, tmp_path: Path, *, many: bool):
    """The trainer, vLLM and the service itself are killed; the loop's user notices only delays."""
    rng = random.Random(13)
    parts = ["trainer", "vllm", "service"] * (7 if many else 1)
    if many:
        rng.shuffle(parts)
    parts = parts[:20]
    steps = 4 * len(parts)
    arguments = {"steps": steps, "sampled_every": 4}
    expected = undisturbed(service, tmp_path, **arguments)
    file = tmp_path / "disturbed.safetensors"
    loop = service.begin_program("steady", download=str(file), **arguments)
    for number, part in enumerate(parts):
        _pass(loop, step=4 * number + rng.randrange(3))
        at = time.monotonic() + rng.random()
        until(lambda at=at: time.monotonic() >= at, "time passes")
        service.kill(part)
    said = answers(loop.end())
    assert [row["step"] for row in said if row.get("nll")] == list(range(steps))
    assert_equal(load_file(file), expected)


def _pass(loop: Running, *, step: int) -> None:
    """Wait until the loop has made a step."""
    loop.until(f'"step": {step},')


async def test_requests_whose_answers_are_lost_are_applied_once(
    service: TinkerService, tmp_path: Path
):
    """The SDK sends them again, and the weights are those of a loop without any loss."""
    steps = 4
    expected = undisturbed(service, tmp_path, steps=steps, sampled_every=0)
    file = tmp_path / "retried.safetensors"
    async with DroppingProxy(service.url, paths=LOSABLE).serving() as proxy:
        loop = service.begin_program(
            "steady", url=proxy.url, steps=steps, sampled_every=0, download=str(file)
        )
        ended = await asyncio.to_thread(loop.end)
        dropped = proxy.dropped
    # and one forward at the end, which goes the same way
    assert dropped == {LOSABLE[0]: steps + 1, LOSABLE[1]: steps}
    answers(ended)
    assert_equal(load_file(file), expected)


@pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_a_flood_expires_no_session(service: TinkerService, *, many: bool):
    """Many samples and bodies of 3 MB at once; heartbeats of four sessions get through in time."""
    samples, bodies = (512, 200) if many else (128, 40)
    said = service.run_program("flood", sessions=4, samples=samples, bodies=bodies)
    assert said["samples"] == 4 * samples
    assert said["bodies"] == bodies
    assert said["slowest_heartbeat"] < 5
    assert len(said["still"]) == 4
    assert max(said["still"]) == pytest.approx(min(said["still"]))


def test_a_full_disk_fails_the_save_and_nothing_else(service: TinkerService):
    """For a while the trainer cannot write large files: its user is told, and goes on."""
    trainer = service.process("trainer")
    before = trainer.rlimit(resource.RLIMIT_FSIZE)
    trainer.rlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    loop = service.begin_program("full_disk")
    loop.until('"failed": true')
    trainer.rlimit(resource.RLIMIT_FSIZE, before)
    said = answers(loop.end())
    assert "full" in said[0]["error"]
    assert said[-1]["resumed"] == pytest.approx(said[-1]["expected"], abs=1e-5)
