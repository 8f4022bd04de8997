"""Which engines a given machine can run or ask."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import MappingProxyType

import msgspec
import pytest

from enginehouse.doctor.findings import Finding, Verdict
from enginehouse.doctor.machine import Machine
from enginehouse.doctor.usable_engines import judge_engines
from enginehouse.engines.hf.installation import INSTALLATION as HF
from enginehouse.engines.registry import ENGINES
from enginehouse.processes.cpu import Cpu
from enginehouse.provisioning.building import RECORD, Record
from enginehouse.provisioning.description import Description
from enginehouse.provisioning.plans import plan_environment

GOOD = Machine(
    python=(3, 12, 1),
    system="Linux",
    architecture="x86_64",
    libc="glibc 2.36",
    cores=16,
    cpu=Cpu(bfloat16=True, float16=False, evidence="the CPU has avx512_bf16"),
    memory=1 << 37,
    available=1 << 37,
    shared_memory=None,
    open_files=(65536, 65536),
    folders=MappingProxyType({}),
    compiler=None,
    compiler_cxx=None,
    python_headers=True,
    uv=None,
    driver=None,
    hub_token=False,
    environ=MappingProxyType({}),
)


def judge(machine: Machine = GOOD, *, cuda: bool = False, **environ: str) -> dict[str, Finding]:
    """The findings by engine."""
    machine = dataclasses.replace(machine, environ=MappingProxyType(environ))
    found = judge_engines(machine, cuda=cuda)
    return {finding.check.removeprefix("engine "): finding for finding in found}


def test_every_engine_is_judged():
    """Each has a line, and whoever cannot be used has a next step."""
    found = judge(PATH="/nowhere")
    assert list(found) == list(ENGINES.names())
    assert all(f.fix for f in found.values() if f.verdict is not Verdict.OK)
    assert {f.verdict for f in found.values()} == {Verdict.OK, Verdict.NO}


def test_a_key_is_named_and_never_shown():
    """Hosted engines need theirs; an empty one is none."""
    assert judge()["openai"].says == "OPENAI_API_KEY is not set"
    assert judge(OPENAI_API_KEY="")["openai"].verdict is Verdict.NO
    found = judge(OPENAI_API_KEY="sk-secret")["openai"]
    assert (found.verdict, found.says) == (Verdict.OK, "OPENAI_API_KEY is set")


def test_an_address_is_needed_where_there_is_none():
    """A Megatron server is somewhere, or nowhere."""
    assert judge()["megatron"].fix == "export MEGATRON_SERVER_URL=http://…, or give --url"
    assert judge(MEGATRON_SERVER_URL="http://127.0.0.1:5000")["megatron"].verdict is Verdict.OK


def test_sglang_needs_a_gpu():
    """It is pinned for CUDA only."""
    assert judge()["sglang"].says == "needs an NVIDIA GPU"
    assert judge(cuda=True)["sglang"].verdict is Verdict.OK


@pytest.mark.parametrize(
    "changes",
    [{"system": "Darwin", "libc": ""}, {"libc": ""}, {"architecture": "riscv64"}],
)
def test_vllm_needs_linux(changes: dict[str, str]):
    """With glibc, on x86-64 or arm64; an install that is named counts anywhere."""
    machine = dataclasses.replace(GOOD, **changes)
    assert judge(machine)["vllm"].verdict is Verdict.NO
    named = judge(machine, ENGINEHOUSE_VLLM_PYTHON="/opt/vllm/bin/python")["vllm"]
    assert (named.verdict, named.says) == (Verdict.OK, "the one that ENGINEHOUSE_VLLM_PYTHON names")
    assert judge()["vllm"].verdict is Verdict.OK


def test_what_was_provisioned_is_named(tmp_path: Path):
    """Once its environment is whole; before that it can be provisioned."""

    def says() -> str:
        found = judge_engines(GOOD, cuda=False, environments=tmp_path)
        return next(finding.says for finding in found if finding.check == "engine hf")

    plan = plan_environment(HF, variant="cpu")
    folder = tmp_path / plan.key
    assert "can be provisioned" in says()
    program = folder / HF.program
    program.parent.mkdir(parents=True)
    program.touch()
    record = Record(
        key=plan.key,
        engine="hf",
        version=plan.version,
        variant="cpu",
        created=0.0,
        base_python="",
        requirements_digest="",
        description=Description(
            version=plan.version, variant="cpu", python="", identity="", packages={}, flags={}
        ),
    )
    (folder / RECORD).write_bytes(msgspec.json.encode(record))
    assert says() == f"provisioned: {plan.key}"


def test_llamacpp_is_found_or_compiled(tmp_path: Path):
    """On PATH, else with compilers and make; else it says what is missing."""
    assert "this machine lacks a C compiler" in judge(PATH=str(tmp_path))["llamacpp"].says
    for name in ("cc", "c++", "make"):
        (tmp_path / name).touch(mode=0o755)
    assert "can be compiled, for cpu" in judge(PATH=str(tmp_path))["llamacpp"].says
    (tmp_path / "llama-server").touch(mode=0o755)
    assert judge(PATH=str(tmp_path))["llamacpp"].says == f"{tmp_path}/llama-server, on PATH"
