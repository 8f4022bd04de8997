from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from tests.support.command_line import House
from tests.support.deployments import opened
from tests.support.tiny_adapters import write_adapter

from enginehouse import SampleRequest, SampleResponse, SamplingParameters, TextPrompt
from enginehouse.client.retry import Retries
from enginehouse.core.incidents import Incident
from enginehouse.deployment.base import Deployment
from enginehouse.deployment.configuration import ServeConfig, parse


async def answer(deployment: Deployment, folder: Path | None) -> str:
    """A greedy one, of the adapter in `folder`."""
    request = SampleRequest(prompt=TextPrompt("x"), parameters=SamplingParameters(max_tokens=8))
    async with deployment.target(folder) as target:
        response: SampleResponse = await target.sampler.sample(request)
    return response.completions[0].text


@pytest.mark.slow
@pytest.mark.parametrize("path", [None, "/v1/load_lora_adapter", "/v1/completions"])
async def test_a_death_between_two_targets(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str | None
):
    """Killed while idle, in a load or in a proof: the next target is there all the same.

    However long the restart takes: it is not the client's retries that outlive it.
    """
    monkeypatch.setattr("enginehouse.client.sampler.Retries", lambda: Retries(attempts=1))
    one, two = (write_adapter(tmp_path / f"step-{seed}", seed=seed) for seed in range(2))
    # a start asks one question, an answer is one, a proof six
    nth = {"/v1/load_lora_adapter": 2, "/v1/completions": 12, None: 99}[path]
    die = {"fault": "die", "path": path or "/", "nth": [nth], "signal": signal.SIGKILL}
    env = {"VLLM_FAKE_FAULTS": json.dumps([die]), "VLLM_FAKE_STATE": str(tmp_path / "counts")}
    values = {
        "model": str(house.model()),
        "server": {"enable_lora": True, "max_loras": 2, "env_vars": env},
    }
    incidents: list[Incident] = []
    async with opened(parse(ServeConfig, values, origin="test"), incidents=incidents) as ready:
        base = await answer(ready, None)
        first = await answer(ready, one)
        if path is None:
            os.kill(ready.server.pid or 0, signal.SIGKILL)
        second = await answer(ready, two)
        assert len(incidents) == 1
        assert len({base, first, second}) == 3
        assert await answer(ready, one) == first
        assert await answer(ready, None) == base
