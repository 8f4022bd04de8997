"""Services with other settings than the one that the other tests share, each started for itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.command_line import House
from tests.support.tinker_service import LIMITS, TinkerService

from enginehouse.provisioning.models import ResolvedModel

pytestmark = pytest.mark.engine

Start = Callable[..., TinkerService]


@pytest.fixture
def start(real_house: House, smollm2: ResolvedModel, sdk: Path) -> Iterator[Start]:
    """Starts a service of SmolLM2 with these words, one per test; it is stopped at the end."""
    started: list[TinkerService] = []

    def begin(*words: str) -> TinkerService:
        service = TinkerService(real_house, sdk=sdk, model=smollm2.path, words=words)
        started.append(service)
        service.start()
        return service

    yield begin
    for service in started:
        assert service.stop().code == 143


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_sampled_and_trained_log_probabilities_agree_in_bfloat16(start: Start):
    """On-policy, within what rounding to eight bits makes of them."""
    service = start("--sampler", "vllm", "--dtype", "bfloat16", *LIMITS)
    loop = service.run_program("on_policy", rounds=3, samples=4, max_tokens=24)
    assert loop["tokens"] >= 2000
    assert abs(loop["v1"]) <= 0.01
    assert loop["v2"] <= 0.005
    assert loop["mean_difference"] > 1e-4  # or it would not be bfloat16


def test_at_a_temperature_log_probabilities_are_those_sampled_from(start: Start):
    """Where the operator chose `scaled`; sampled by the hf engine."""
    service = start(
        *("--sampler", "hf", "--dtype", "float32", "--logprobs", "scaled"),
        *("--max-model-len", "1024", "--max-lora-rank", "8"),
    )
    size = {"samples": 4, "max_tokens": 24, "vocabulary": 49_152}
    warm = service.run_program("warm", temperature=0.7, **size)
    assert warm["tokens"] == 96
    assert warm["scaled"] <= 1e-3
    assert warm["raw"] > 0.1
