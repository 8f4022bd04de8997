"""Which variables of a server are stored with a run."""

from __future__ import annotations

import pytest

from enginehouse.commands.kept_variables import is_kept


@pytest.mark.parametrize(
    "name", ["VLLM_USE_V1", "SGL_ENABLE_JIT", "SGLANG_X", "LLAMA_ARG_N", "CUDA_VISIBLE_DEVICES"]
)
def test_settings_are_kept(name: str):
    """Of any engine, and of what engines run on."""
    assert is_kept(name)


@pytest.mark.parametrize(
    "name", ["VLLM_API_KEY", "HF_TOKEN", "MY_SETTING", "vllm_port", "VLLM_a", "AWS_REGION"]
)
def test_anything_else_may_be_a_secret(name: str):
    """Also a setting whose name says so."""
    assert not is_kept(name)
