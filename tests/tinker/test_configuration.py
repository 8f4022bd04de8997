"""The settings of the service, and what Tink's environment variables choose."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginehouse.core.errors import ConfigurationError
from enginehouse.deployment.configuration import parse
from enginehouse.store.layout import Layout
from enginehouse.tinker.configuration import TinkerConfig, with_variables

MEGATRON = "http://megatron:5000"


def configured(values: dict[str, object], **environment: str) -> TinkerConfig:
    """What the command makes of options and variables."""
    chosen = with_variables({"base_model": "m"} | values, environment)
    return parse(TinkerConfig, chosen.values, origin="test")


@pytest.mark.parametrize(
    ("megatron", "vllm", "trainer", "sampler"),
    [
        ("true", "true", "megatron", "vllm"),
        ("true", "false", "megatron", "megatron"),
        ("false", "false", "hf", "hf"),
        ("false", "true", "hf", "vllm"),
    ],
)
def test_the_four_combinations_of_tinks_table(megatron, vllm, trainer, sampler):
    """USE_MEGATRON and USE_VLLM, as in the table; the Megatron server is taken where it is used."""
    config = configured({}, USE_MEGATRON=megatron, USE_VLLM=vllm, MEGATRON_SERVER_URL=MEGATRON)
    assert (config.trainer, config.sampler) == (trainer, sampler)
    assert config.megatron_url == (MEGATRON if "megatron" in {trainer, sampler} else None)


def test_an_option_is_stronger_than_a_variable_and_notes_say_where_the_rest_comes_from():
    """One line for each value that came from a variable."""
    chosen = with_variables(
        {"base_model": "m", "sampler": "hf"},
        {"USE_MEGATRON": "1", "USE_VLLM": "1", "MEGATRON_SERVER_URL": MEGATRON},
    )
    assert chosen.values["sampler"] == "hf"
    assert chosen.notes == (
        "trainer is megatron, because USE_MEGATRON is true; --trainer overrides",
        f"megatron_url is {MEGATRON}, because MEGATRON_SERVER_URL is set; --megatron-url overrides",
    )


def test_vllms_variables():
    """The address of a running server, and its limits."""
    config = configured(
        {},
        USE_VLLM="true",
        VLLM_BASE_URL="http://gpu:8000",
        VLLM_ENABLE_LORA="true",
        VLLM_MAX_LORAS="4",
        VLLM_MAX_LORA_RANK="16",
    )
    assert (config.vllm_url, config.max_loras, config.max_lora_rank) == ("http://gpu:8000", 4, 16)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"USE_VLLM": "perhaps"}, "USE_VLLM is 'perhaps'"),
        ({"USE_VLLM": "1", "VLLM_ENABLE_LORA": "false"}, "VLLM_ENABLE_LORA is false"),
        ({"VLLM_MAX_LORAS": "many"}, "max_loras"),
        ({"USE_MEGATRON": "1"}, "MEGATRON_SERVER_URL"),
    ],
)
def test_what_a_variable_may_not_say(environment, said):
    """Refused by name."""
    with pytest.raises(ConfigurationError, match=said):
        configured({}, **environment)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"base_model": None}, "base_model"),
        ({"trainer": "megatron"}, "megatron_url"),
        ({"sampler": "hf", "vllm_url": "http://gpu:8000"}, "without effect"),
        ({"samplr": "hf"}, "did you mean 'sampler'"),
    ],
)
def test_contradictions_are_refused_before_anything_starts(values, said):
    """Each names the keys that contradict each other."""
    with pytest.raises(ConfigurationError, match=said):
        configured(values)


def test_by_default_the_home_is_the_layouts():
    """And otherwise the one that was given."""
    layout = Layout(cache=Path("/c"), state=Path("/s"), config=Path("/e"))
    assert configured({}).folder(layout) == Path("/s/tinker")
    assert configured({"home": "/h"}).folder(layout) == Path("/h")


def test_samples_are_computed_in_the_type_in_which_the_base_model_is_trained():
    """Unless one was chosen; what no sampling engine is to compute in is left open."""
    config = TinkerConfig(base_model="org/model")
    assert config.computing_in("float32").dtype == "float32"
    assert config.computing_in("float16").dtype is None
    chosen = TinkerConfig(base_model="org/model", dtype="bfloat16")
    assert chosen.computing_in("float32").dtype == "bfloat16"
