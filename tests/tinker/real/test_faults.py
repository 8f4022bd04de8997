"""Answers that are lost on the wire: nothing is applied twice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
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
