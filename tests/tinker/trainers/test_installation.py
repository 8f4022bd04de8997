from __future__ import annotations

import re

import pytest

from enginehouse.commands.engines import engine_facts
from enginehouse.commands.installations import load_installation
from enginehouse.core.errors import ConfigurationError, ProvisioningError, UnknownNameError
from enginehouse.engines.hf.installation import INSTALLATION as HF
from enginehouse.provisioning.environments import find_environment
from enginehouse.provisioning.plans import plan_environment
from enginehouse.runtime.context import Context
from enginehouse.tinker.trainers.installation import INSTALLATION

NEEDED = {"torch", "transformers", "peft", "safetensors", "msgspec", "numpy", "gguf", "accelerate"}
SERVERS = {"vllm", "sglang", "aiohttp", "fastapi", "uvicorn", "flask", "tornado"}


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_pinned_environment_has_what_it_needs_and_no_server(variant):
    """In both variants, with hashes but for torch's CPU build."""
    plan = plan_environment(INSTALLATION, variant=variant)
    pins = re.findall(r"^([a-z0-9-]+)==(\S+)", plan.requirements, re.MULTILINE)
    names = {name for name, _ in pins}
    assert names >= NEEDED
    assert not names & SERVERS
    assert plan.key.startswith(f"trainer-5.19.0-{variant}-py")
    assert plan.pinned


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_it_computes_as_the_hf_engine(variant):
    """Trained and sampled log-probabilities agree best with the same torch and transformers."""
    pattern = re.compile(r"^(?:torch|transformers|peft|safetensors)==\S+", re.MULTILINE)
    ours, theirs = (
        set(pattern.findall(plan_environment(installation, variant=variant).requirements))
        for installation in (INSTALLATION, HF)
    )
    assert ours == theirs


def test_install_finds_engines_and_the_trainer():
    """By name; what runs elsewhere, and what does not exist, is refused."""
    assert load_installation("trainer") is INSTALLATION
    assert load_installation("hf") is HF
    with pytest.raises(ConfigurationError, match=r"openai .*elsewhere"):
        load_installation("openai")
    with pytest.raises(UnknownNameError):
        load_installation("trainers")


def test_it_is_no_engine():
    """It answers no prompts, so `enginehouse engines` does not list it."""
    assert "trainer" not in {facts.name for facts in engine_facts()}


async def test_an_own_python_is_named_by_a_variable(monkeypatch, tmp_path):
    """And checked before it is used."""
    monkeypatch.setenv("ENGINEHOUSE_TRAINER_PYTHON", str(tmp_path / "python"))
    with pytest.raises(ProvisioningError, match="from ENGINEHOUSE_TRAINER_PYTHON") as raised:
        await find_environment(
            INSTALLATION, python=None, version=None, variant=None, context=Context()
        )
    assert "enginehouse install trainer" in raised.value.fix


def test_install_plans_it(call):
    """`enginehouse install trainer --plan` says what would be built."""
    planned = call("install", "trainer", "--plan", "--variant", "cpu")
    assert planned.code == 0, planned.err
    assert planned.out.startswith("trainer 5.19.0 for cpu, ")
