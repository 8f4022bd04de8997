"""GRAIL's settings, made into those of a CheckpointEvaluator."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest

from enginehouse.core.errors import ConfigurationError, UnknownNameError
from enginehouse.facades.grail import EvalConfig, make_evaluator


def test_the_defaults_are_grails(tmp_path: Path):
    """Its decoding, its repeats, its server's sizes; made without a warning."""
    config = make_evaluator(EvalConfig(), tasks=["gsm8k"], folder=tmp_path)._config
    assert (config.plan.engine, config.settings.seed, config.settings.samples) == ("vllm", 2025, 5)
    assert (config.settings.temperature, config.settings.top_p, config.settings.max_tokens) == (
        0.8,
        0.95,
        2048,
    )
    assert config.settings.concurrency == 128
    assert config.plan.server.gpu_memory_utilization == 0.82
    assert (config.plan.server.max_model_len, config.plan.server.max_num_seqs) == (4096, 160)
    assert (config.plan.url, config.plan.python, config.settings.limit) == (None, None, None)
    # a fixed default would be shared by all trainers of a machine: a free one is leased
    assert config.plan.server.port is None


def test_a_running_server(tmp_path: Path):
    """start_server = False names one, here or elsewhere; nothing of ours is started."""
    given = EvalConfig(start_server=False, server_host="10.0.1.50", server_port=8000)
    config = make_evaluator(given, tasks=["gsm8k"], folder=tmp_path)._config
    assert config.plan.url == "http://10.0.1.50:8000"
    assert config.plan.server.model_dump(exclude_defaults=True) == {}


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("sglang_start_server", "start_server", False),
        ("sglang_host", "server_host", "10.0.1.50"),
        ("sglang_port", "server_port", 8000),
        ("sglang_server_timeout_s", "server_timeout", 300.0),
    ],
)
def test_the_guides_spellings(old: str, new: str, value: Any):
    """Accepted with a warning that names the other one, and readable under both names."""
    with pytest.warns(UserWarning, match=f"{old} .*{new}") as caught:
        config = EvalConfig(**{old: value})
    assert caught[0].filename == __file__
    assert config == EvalConfig(**{new: value})
    assert getattr(config, old) == getattr(config, new) == value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        changed = dataclasses.replace(config, server_port=9000)
    assert changed.server_port == 9000


def test_its_own_python_and_timeout(tmp_path: Path):
    """vllm_python_executable is the engine's Python; a start that gets on is not timed out."""
    given = EvalConfig(vllm_python_executable="/opt/vllm/bin/python", server_timeout=300)
    config = make_evaluator(given, tasks=["gsm8k"], folder=tmp_path)._config
    assert config.plan.python == Path("/opt/vllm/bin/python")
    assert (config.plan.progress_timeout, config.plan.start_timeout) == (300, 3600)


def test_other_backends(tmp_path: Path):
    """SGLang has sizes of its own; plain transformers has none."""
    sglang = make_evaluator(EvalConfig(backend="sglang"), tasks=["gsm8k"], folder=tmp_path)._config
    assert sglang.plan.engine == "sglang"
    assert (sglang.settings.concurrency, sglang.plan.server.max_num_seqs) == (4, 4)
    assert (sglang.plan.server.max_model_len, sglang.plan.server.gpu_memory_utilization) == (
        1024,
        0.75,
    )
    hf = make_evaluator(EvalConfig(backend="hf"), tasks=["gsm8k"], folder=tmp_path)._config
    assert (hf.plan.engine, hf.settings.concurrency, hf.plan.server.max_num_seqs) == (
        "hf",
        None,
        None,
    )


def test_greedy_a_subset_and_a_cache_type(tmp_path: Path):
    """do_sample, subset_size and vllm_kv_cache_dtype are heeded; settings of ours go before."""
    given = EvalConfig(do_sample=False, subset_size=50, vllm_kv_cache_dtype="fp8", server_port=1234)
    config = make_evaluator(given, tasks=["gsm8k"], folder=tmp_path, samples=1)._config
    assert (config.settings.temperature, config.settings.top_p, config.settings.limit) == (
        0.0,
        1.0,
        50,
    )
    assert config.settings.samples == 1
    assert config.plan.server.port == 1234
    assert config.plan.server.extra_args == ["--kv-cache-dtype", "fp8"]


@pytest.mark.parametrize(
    ("name", "value"), [("split", "test"), ("batch_size", 8), ("report_ks", (1, 2))]
)
def test_what_has_no_effect_is_said(name: str, value: Any):
    """With what to do instead; nothing is dropped in silence."""
    with pytest.warns(UserWarning, match=f"{name} .*effect: ."):
        EvalConfig(**{name: value})


def test_what_there_is_not():
    """A wrong name or backend is an error that names the nearest."""
    with pytest.raises(UnknownNameError, match="server_prot") as caught:
        EvalConfig(server_prot=1)
    assert "did you mean 'server_port'?" in str(caught.value)
    with pytest.raises(UnknownNameError, match="tensorrt"):
        EvalConfig(backend="tensorrt")
    with pytest.raises(ConfigurationError, match="window_interval"):
        EvalConfig(window_interval=0)


def test_when_it_is_due():
    """Each so many windows, and never when it is not enabled."""
    config = EvalConfig(window_interval=20)
    assert [window for window in range(1, 61) if config.is_due(window)] == [20, 40, 60]
    assert not EvalConfig(enabled=False).is_due(20)
