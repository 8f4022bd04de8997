"""The JSON bodies of jobs."""

from __future__ import annotations

import json

import pytest

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.bodies import parse_json
from enginehouse.tinker.data import AdamStep
from enginehouse.tinker.job_bodies import (
    CreateModel,
    LoadWeights,
    OptimStep,
    SaveWeights,
    SaveWeightsForSampler,
)

STEP = {"model_id": "ses-1:train:0", "seq_id": 3}


async def test_a_step_has_the_defaults_of_the_sdk():
    """And 1e18 is a seq_id like others."""
    body = await parse_json(
        json.dumps({**STEP, "seq_id": 10**18, "adam_params": {}}).encode(), OptimStep
    )
    assert body.adam_params.step() == AdamStep()


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"beta1": 1.0}, "beta1"),
        ({"learning_rate": -1e-4}, "learning_rate"),
        ({"lr": 1e-4}, "lr"),
    ],
)
async def test_a_wrong_parameter_is_named(params: dict[str, float], named: str):
    """Whether its value or its name is wrong."""
    with pytest.raises(TinkerError, match=named):
        await parse_json(json.dumps({**STEP, "adam_params": params}).encode(), OptimStep)


async def test_numbers_that_json_lacks_are_refused():
    """Python's json writes NaN all the same."""
    content = json.dumps({**STEP, "adam_params": {"learning_rate": float("nan")}}).encode()
    with pytest.raises(TinkerError, match="learning_rate"):
        await parse_json(content, OptimStep)


async def test_another_optimizer_is_refused():
    """At the model's creation and in its steps."""
    with pytest.raises(TinkerError, match="optimizer_params"):
        await parse_json(
            json.dumps({**STEP, "optimizer_params": {"type": "dimuon"}}).encode(), OptimStep
        )
    create = {"session_id": "ses-1", "model_seq_id": 0, "base_model": "fake/bigram"}
    dimuon = {**create, "optimizer_config": {"type": "dimuon", "version": 1}}
    with pytest.raises(TinkerError, match="optimizer_config"):
        await parse_json(json.dumps(dimuon).encode(), CreateModel)
    assert (await parse_json(json.dumps(create).encode(), CreateModel)).spec(seed=5).seed == 5


async def test_a_time_to_live_is_between_an_hour_and_ten_years():
    """As the SDK documents it."""
    with pytest.raises(TinkerError, match="ttl_seconds"):
        await parse_json(json.dumps({**STEP, "path": "a", "ttl_seconds": 60}).encode(), SaveWeights)


async def test_what_the_sdk_sends_is_understood():
    """With all its fields."""
    save = {**STEP, "path": None, "sampling_session_seq_id": 4, "kind": "inflight"}
    save |= {"ttl_seconds": None, "user_metadata": None, "type": "save_weights_for_sampler"}
    assert (await parse_json(json.dumps(save).encode(), SaveWeightsForSampler)).kind == "inflight"
    load = {"session_id": "ses-1", "model_seq_id": 1, "base_model": None, "user_metadata": None}
    load |= {"path": "tinker://a/weights/b", "optimizer": True, "optimizer_config": None}
    load |= {"weights_access_token": None, "type": "load_weights"}
    assert (await parse_json(json.dumps(load).encode(), LoadWeights)).optimizer
