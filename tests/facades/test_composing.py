"""Hydra's group `backend`: what is composed, what is refused, and what drives it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from enginehouse.core.errors import ConfigurationError, UnknownNameError
from enginehouse.facades.agent_arena import configs
from enginehouse.facades.agent_arena.composing import (
    HfSettings,
    LlamaCppSettings,
    VllmSettings,
    compose_backend,
    parse_backend,
)

FILES = Path(configs.__file__).parent / "backend"
# configs/backend/vllm.yaml as Agent Arena's document shows it
SEED = """
backend:
  type: vllm
  model: "meta-llama/Llama-2-7b-chat-hf"

  # Server settings
  host: "localhost"
  port: 8000
  api_base: "http://localhost:8000/v1"

  # Model parameters
  tensor_parallel_size: 1  # Number of GPUs
  dtype: "auto"
  max_model_len: 4096
  gpu_memory_utilization: 0.9

  # Generation
  temperature: 0.7
  top_p: 0.9
  max_tokens: 512

  # Function calling
  function_calling:
    enabled: true
    format: "json"
"""


def test_the_default_is_the_original_s_file() -> None:
    """Every key of the document's file is in ours, with its value."""
    composed = compose_backend()
    original = yaml.safe_load(SEED)["backend"]
    assert composed == parse_backend(original)
    assert set(original) <= set(composed.model_dump())
    assert isinstance(composed, VllmSettings)


@pytest.mark.parametrize(
    ("name", "kind"), [("vllm", VllmSettings), ("llama_cpp", LlamaCppSettings), ("hf", HfSettings)]
)
def test_a_file_has_every_key_of_its_settings(name: str, kind: type) -> None:
    """The packaged files are the reference: a key that they lack could not be overridden."""
    values = yaml.safe_load((FILES / f"{name}.yaml").read_text())
    assert set(values) == set(kind.model_fields)
    assert set(values["function_calling"]) == {"enabled", "format"}


def test_overrides_are_composed_and_typed() -> None:
    """The address follows the port; half is float16; the result cannot be changed."""
    composed = compose_backend(
        ["backend.port=9001", "backend.dtype=half", "backend.function_calling.enabled=false"]
    )
    assert isinstance(composed, VllmSettings)
    assert composed.api_base == "http://localhost:9001/v1"
    assert composed.dtype == "float16"
    assert not composed.function_calling.enabled
    with pytest.raises(ValueError, match="frozen"):
        composed.port = 1  # type: ignore[misc]
    llama = compose_backend(["backend=llama_cpp", "backend.model_path=m.gguf", "backend.n_ctx=99"])
    assert isinstance(llama, LlamaCppSettings)
    assert (llama.model_path, llama.n_ctx, llama.n_gpu_layers) == ("m.gguf", 99, 0)
    hf = compose_backend(["backend=hf", "backend.model=smollm2", "backend.temperature=0"])
    assert isinstance(hf, HfSettings)
    assert (hf.model, hf.temperature) == ("smollm2", 0)


def test_vllm_s_settings_describe_its_server() -> None:
    """What `enginehouse serve` would be given: no key of the server's is lost."""
    served = compose_backend(["backend.port=9001", "backend.tensor_parallel_size=2"])
    assert isinstance(served, VllmSettings)
    config = served.serving()
    assert (config.model, config.engine) == ("meta-llama/Llama-2-7b-chat-hf", "vllm")
    assert config.server.model_dump(exclude_defaults=True) == {
        "host": "localhost",
        "port": 9001,
        "tensor_parallel_size": 2,
        "max_model_len": 4096,
        "gpu_memory_utilization": 0.9,
        "served_model_name": "meta-llama/Llama-2-7b-chat-hf",
    }
    keyed = compose_backend(["backend.api_key=sk-secret"])
    assert isinstance(keyed, VllmSettings)
    assert keyed.serving().server.api_key == "sk-secret"
    assert "sk-secret" not in repr(keyed)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["backend=vlm"], "no backend called 'vlm'\n.*did you mean 'vllm'"),
        (["backend.prot=1"], "unknown key 'backend.prot'\n.*did you mean 'port'"),
        (["+backend.prot=1"], "unknown key 'prot'; did you mean 'port'"),
        (["backend.function_calling.enable=true"], "did you mean 'enabled'"),
        (["+backend.function_calling.enable=true"], "did you mean 'enabled'"),
        (["backend=llama_cpp"], "backend.model_path has no value"),
        (["backend=hf"], "backend.model has no value"),
        (["backend.temperature=-1"], "greater than or equal to 0"),
        (["backend.temperature=warm"], "valid number"),
        (["backend.function_calling.format=xml"], "'json'"),
        (["backend.type=vlm"], "did you mean 'vllm'"),
        (["nonsense"], "nonsense"),
        (["backend.port=${nowhere}"], "nowhere"),
    ],
)
def test_what_cannot_be_is_refused_in_words(overrides: list[str], says: str) -> None:
    """Hydra's errors and ours alike: one kind of error, with the nearest name where one is near."""
    with pytest.raises(ConfigurationError) as refused:
        compose_backend(overrides)
    assert re.search(says, str(refused.value)), str(refused.value)


def test_keys_of_the_original_without_effect_here_are_refused() -> None:
    """They are not swallowed; the message says what to do instead."""
    llama = ["backend=llama_cpp", "backend.model_path=m.gguf"]
    with pytest.raises(ConfigurationError, match=r"backend\.low_vram"):
        compose_backend([*llama, "+backend.low_vram=true"])
    with pytest.raises(ConfigurationError, match="max_retries"):
        compose_backend([*llama, "+backend.function_calling.max_retries=3"])


def test_the_original_s_file_placed_in_a_group_says_what_is_wrong() -> None:
    """It has `backend:` at its top, which a group's file doubles."""
    nested = OmegaConf.create({"backend": yaml.safe_load(SEED)["backend"]})
    with pytest.raises(ConfigurationError, match="twice") as refused:
        parse_backend(nested)
    assert "@package _global_" in (refused.value.fix or "")


def test_composing_within_a_hydra_application_leaves_it_alone() -> None:
    """Hydra's global state is as it was before."""
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_module("enginehouse.facades.agent_arena.configs", version_base="1.3"):
        before = GlobalHydra.instance().hydra
        compose_backend()
        assert GlobalHydra.instance().hydra is before


def test_an_unknown_file_is_an_unknown_name() -> None:
    """With what there is."""
    with pytest.raises(UnknownNameError) as refused:
        compose_backend(["backend=vlm"])
    assert refused.value.known == ("hf", "llama_cpp", "vllm")
