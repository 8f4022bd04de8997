from __future__ import annotations

import re

import pytest

from enginehouse.commands.installations import load_installation
from enginehouse.core.errors import ConfigurationError, UnknownNameError
from enginehouse.harnesses.lm_eval.harness import LmEval
from enginehouse.harnesses.registry import HARNESSES, load_harness, problem_of
from enginehouse.provisioning.plans import ANY, plan_environment
from enginehouse.provisioning.versions import known_plan
from enginehouse.store.layout import Layout

NAMES = HARNESSES.names()


@pytest.mark.parametrize("name", NAMES)
def test_each_is_pinned_without_torch(name: str) -> None:
    """One file for every machine, with hashes; what a harness asks computes elsewhere."""
    installation = load_harness(name).installation
    plan = plan_environment(installation)
    assert plan.variant == ANY
    assert plan.key.startswith(f"{name}-{installation.default_version}-any-py")
    names = set(re.findall(r"^([a-z0-9-]+)==", plan.requirements, re.MULTILINE))
    assert not names & {"torch", "vllm", "nvidia-cuda-runtime"}
    assert plan.requirements.count("--hash=sha256:") > len(names)
    assert "torch" not in plan.describe()


@pytest.mark.parametrize("name", NAMES)
def test_install_knows_each_and_that_it_has_no_variants(name: str) -> None:
    """A GPU changes nothing for a program that only asks."""
    assert load_installation(name) is load_harness(name).installation
    with pytest.raises(ConfigurationError, match=f"{name} .*variants"):
        plan_environment(load_installation(name), variant="cuda")


@pytest.mark.parametrize("name", NAMES)
def test_another_version_is_resolved_by_install(name: str) -> None:
    """Without a registry it is not known."""
    with pytest.raises(ConfigurationError) as raised:
        known_plan(
            load_installation(name), version="0.0.1", variant=None, layout=Layout.from_environment()
        )
    assert f"{name} 0.0.1 is neither pinned nor installed here" in raised.value.message
    assert f"enginehouse install {name} --version 0.0.1" in str(raised.value.fix)


def test_an_unknown_name_lists_the_known_ones() -> None:
    """The nearest first."""
    with pytest.raises(UnknownNameError, match="'lm-eval'"):
        load_harness("lm_eval")
    with pytest.raises(UnknownNameError, match="'lm-eval'"):
        load_installation("lmeval")


def test_a_plug_in_without_check_is_refused() -> None:
    """A run calls it before anything starts, and would end in an AttributeError."""

    class Incomplete(LmEval):
        check = property()  # type: ignore[assignment]

    assert problem_of("lm-eval", LmEval) is None
    assert problem_of("lm-eval", Incomplete) == "lacks: check"
