"""What an operator chose becomes servers with the right flags, and the engine that can run here."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.command_line import House
from tests.support.tiny_adapters import write_adapter

from enginehouse.core.errors import ConfigurationError, ProvisioningError
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout
from enginehouse.testing.fake_sampling import FakeSampling
from enginehouse.testing.sampling_cases import BASE
from enginehouse.tinker.configuration import TinkerConfig
from enginehouse.tinker.sampling import opening
from enginehouse.tinker.sampling.base import TokenPrompt, Weights
from enginehouse.tinker.sampling.opening import open_sampling


def _config(house: House, **fields: Any) -> TinkerConfig:
    values = {"base_model": str(house.model()), "logprobs": "raw", "max_model_len": 512}
    return TinkerConfig.model_validate(values | fields)


@asynccontextmanager
async def _opened(config: TinkerConfig, told: list[str]) -> AsyncIterator[Any]:
    context = Context(layout=Layout.from_environment(), notify=told.append)
    async with open_sampling(config, context) as engine:
        yield engine


@pytest.mark.slow
async def test_a_server_of_our_own(house: House, tmp_path: Path):
    """Started for the service's adapters, with candidates and log-probabilities as configured."""
    told: list[str] = []
    config = _config(house, max_loras=3, max_lora_rank=20, logprobs="scaled", dtype="float32")
    async with _opened(config, told) as engine:
        command = engine.main.deployment.server.command
        flags = dict(itertools.pairwise(command))
        wanted = {
            "--max-lora-rank": "32",  # the next that vLLM knows
            "--max-model-len": "512",
            "--dtype": "float32",
            "--max-logprobs": "128",
            "--logprobs-mode": "processed_logprobs",
        }
        assert {flag: flags.get(flag) for flag in wanted} == wanted
        assert engine.max_length == 511
        mine = Weights(key="mine", folder=write_adapter(tmp_path / "a"))
        prompt = TokenPrompt(tokens=np.array([300, 400], np.int32), max_tokens=2)
        for weights in (BASE, mine):
            assert len((await engine.sample(weights, prompt)).sequences[0].tokens) == 2
        # the fake's checkpoint has no tensors, so nothing could be tried
        assert "not a checkpoint on this machine" in engine.description["unembedding"]["why"]


@pytest.mark.slow
async def test_no_output_layer_is_tried_if_none_is_trained(house: House):
    """An older adapter that has one is not trusted to the main engine."""
    told: list[str] = []
    async with _opened(_config(house, train_unembed=False), told) as engine:
        unembedding = engine.description["unembedding"]
        assert "--no-train-unembed" in unembedding["why"]
        assert unembedding["answered_by"] == unembedding["prompts_scored_by"] == "hf"
    assert any("--no-train-unembed" in line for line in told)


async def test_hf_where_the_main_engine_cannot_run(house: House, monkeypatch: pytest.MonkeyPatch):
    """It is said; other failures are not hidden by a slow engine."""
    fake, told = FakeSampling(), []

    @asynccontextmanager
    async def cannot(*_: object) -> AsyncIterator[None]:
        raise ProvisioningError("there is no build for this machine")
        yield

    @asynccontextmanager
    async def plain(*_: object, **__: object) -> AsyncIterator[FakeSampling]:
        yield fake

    monkeypatch.setattr(opening, "_main_deployment", cannot)
    monkeypatch.setattr(opening, "_open_plain", plain)
    async with _opened(_config(house), told) as engine:
        assert engine is fake
    assert "vllm cannot run here (there is no build for this machine): hf samples" in told[0]


@pytest.mark.slow
async def test_somebody_elses_server_must_give_what_the_service_is_to_give(house: House):
    """Raw or scaled is found out by asking; the fake vLLM's are raw, whatever the temperature."""
    told: list[str] = []
    async with _opened(_config(house), told) as engine:
        url = engine.main.deployment.url
        with pytest.raises(ConfigurationError, match="gives raw"):
            async with _opened(_config(house, vllm_url=url, logprobs="scaled"), told):
                pass
