"""NVML is not on every machine: it is played by a module of that name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from enginehouse.processes import gpus
from enginehouse.processes.gpus import Driver, cuda_of_driver, memory_by_pid, read_driver, read_gpus
from enginehouse.results.activity import GpuReading

GIB = 1 << 30


class NvmlError(Exception):
    """As pynvml's NVMLError: the base of everything that it raises."""


def refuse(*_: Any) -> Any:
    """What the driver does not do."""
    raise NvmlError("Not Supported")


class FakeNvml(ModuleType):
    """Two GPUs; a test replaces what is to answer otherwise."""

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.NVMLError = NvmlError
        self.opened = 0
        self.processes = {0: [(11, GIB), (12, 2 * GIB)], 1: [(11, 3 * GIB)]}
        self.nvmlDeviceGetCount = lambda: 2
        self.nvmlDeviceGetHandleByIndex = lambda index: index
        self.nvmlDeviceGetName = lambda _: "NVIDIA H200"
        self.nvmlDeviceGetUUID = lambda handle: f"GPU-{handle}"
        self.nvmlDeviceGetMemoryInfo = lambda handle: SimpleNamespace(
            used=(handle + 1) * GIB, total=141 * GIB, free=0
        )
        self.nvmlDeviceGetCudaComputeCapability = lambda _: (9, 0)
        self.nvmlSystemGetDriverVersion = lambda: "580.95.05"
        self.nvmlSystemGetCudaDriverVersion_v2 = lambda: 13000
        self.nvmlDeviceGetUtilizationRates = lambda handle: SimpleNamespace(gpu=30 * handle)

    def nvmlInit(self) -> None:  # noqa: N802
        """Count."""
        self.opened += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        """Count."""
        self.opened -= 1

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:  # noqa: N802
        """As the driver lists them."""
        return [SimpleNamespace(pid=p, usedGpuMemory=m) for p, m in self.processes[handle]]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    """NVML of a machine, not of a container; what was opened must be closed again."""
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(gpus, "_pids_are_the_hosts", lambda: True)
    yield fake
    assert fake.opened == 0


def test_every_gpu_is_read(nvml: FakeNvml):
    """Bytes, a load between 0 and 1, by index; a load of 0 is 0 and not unknown."""
    assert read_gpus() == (
        GpuReading(
            index=0,
            uuid="GPU-0",
            name="NVIDIA H200",
            used_bytes=GIB,
            total_bytes=141 * GIB,
            load=0.0,
            capability=9.0,
        ),
        GpuReading(
            index=1,
            uuid="GPU-1",
            name="NVIDIA H200",
            used_bytes=2 * GIB,
            total_bytes=141 * GIB,
            load=0.3,
            capability=9.0,
        ),
    )


def test_memory_is_summed_over_gpus(nvml: FakeNvml):
    """A process on two GPUs has one entry."""
    assert memory_by_pid() == {11: 4 * GIB, 12: 2 * GIB}


def test_memory_that_the_driver_does_not_tell(nvml: FakeNvml):
    """None (as on Windows) is not 0: the process is left out, and others stay."""
    nvml.processes = {0: [(11, None), (12, 5)], 1: [(13, None)]}
    assert memory_by_pid() == {12: 5}


@pytest.mark.parametrize("name", ["nvmlDeviceGetMemoryInfo", "nvmlDeviceGetUtilizationRates"])
def test_what_is_not_supported_is_unknown(nvml: FakeNvml, name: str):
    """Under MIG there is no load, with unified memory no memory; the rest of the GPU is there."""
    setattr(nvml, name, refuse)
    found = read_gpus()
    assert [gpu.uuid for gpu in found] == ["GPU-0", "GPU-1"]
    unknown = found[1].used_bytes if name.endswith("MemoryInfo") else found[1].load
    assert unknown is None


def test_a_driver_that_lists_no_processes(nvml: FakeNvml):
    """No entry, no error."""
    nvml.nvmlDeviceGetComputeRunningProcesses = refuse  # type: ignore[method-assign]
    assert memory_by_pid() == {}


def test_a_gpu_that_is_lost(nvml: FakeNvml):
    """Fallen off the bus: the others are still read."""

    def handle(index: int) -> int:
        if index == 0:
            raise NvmlError("GPU is lost")
        return index

    nvml.nvmlDeviceGetHandleByIndex = handle
    assert [gpu.index for gpu in read_gpus()] == [1]
    assert memory_by_pid() == {11: 3 * GIB}


def test_a_gpu_without_a_name(nvml: FakeNvml):
    """It is lost between two questions: it is left out."""
    nvml.nvmlDeviceGetUUID = refuse
    assert read_gpus() == ()


@pytest.mark.parametrize("read", [read_gpus, memory_by_pid])
def test_no_driver(nvml: FakeNvml, read: Callable[[], Any]):
    """The package without libnvidia-ml.so: empty, and nothing is closed that was not opened."""
    nvml.nvmlInit = refuse  # type: ignore[method-assign]
    assert len(read()) == 0


@pytest.mark.parametrize("read", [read_gpus, memory_by_pid])
def test_no_package(monkeypatch: pytest.MonkeyPatch, read: Callable[[], Any]):
    """Without pynvml: empty."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert len(read()) == 0


def test_the_counting_fails(nvml: FakeNvml):
    """A driver that answers nothing at all has no GPUs, and NVML is closed."""
    nvml.nvmlDeviceGetCount = refuse
    assert read_gpus() == ()
    assert memory_by_pid() == {}


def test_a_containers_pids(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """There NVML may give the host's pids: only one that has a GPU open here counts."""
    monkeypatch.setattr(gpus, "_pids_are_the_hosts", lambda: False)
    monkeypatch.setattr(gpus, "PROCESSES", tmp_path)
    for pid, target in ((11, "/dev/nvidia0"), (12, "/dev/null")):
        (tmp_path / str(pid) / "fd").mkdir(parents=True)
        (tmp_path / str(pid) / "fd" / "3").symlink_to(target)
    nvml.processes = {0: [(11, 1), (12, 2), (13, 4)], 1: []}
    assert memory_by_pid() == {11: 1}


@pytest.mark.parametrize(
    ("target", "hosts"), [("pid:[4026531836]", True), ("pid:[4026532201]", False), (None, False)]
)
def test_whose_pids_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str | None, *, hosts: bool
):
    """The kernel's first pid namespace is the host's; where that cannot be read, who knows."""
    if target:
        (tmp_path / "self/ns").mkdir(parents=True)
        (tmp_path / "self/ns/pid").symlink_to(target)
    monkeypatch.setattr(gpus, "PROCESSES", tmp_path)
    assert gpus._pids_are_the_hosts() is hosts


def test_the_driver(nvml: FakeNvml):
    """Its version, its CUDA and its GPUs; a figure that a GPU does not have is None."""
    nvml.nvmlDeviceGetMemoryInfo = refuse
    driver = read_driver()
    assert driver is not None
    assert (driver.version, driver.cuda, driver.problem) == ("580.95.05", (13, 0), None)
    assert [(gpu.name, gpu.total_bytes) for gpu in driver.gpus] == [("NVIDIA H200", None)] * 2


def test_a_driver_that_does_not_answer(nvml: FakeNvml):
    """Its own words are the problem; a driver that is not installed is none."""

    def fail() -> None:
        raise NvmlError("Driver/library version mismatch")

    def missing() -> None:
        error = NvmlError("NVML Shared Library Not Found")
        error.value = 12  # type: ignore[attr-defined]
        raise error

    nvml.nvmlInit = fail  # type: ignore[method-assign]
    assert read_driver() == Driver(problem="Driver/library version mismatch")
    nvml.nvmlInit = missing  # type: ignore[method-assign]
    assert read_driver() is None


def test_the_driver_says_which_cuda_it_runs(nvml: FakeNvml):
    """NVML gives 12080 for CUDA 12.8; a driver without an answer gives none."""
    nvml.nvmlSystemGetCudaDriverVersion_v2 = lambda: 12080
    assert cuda_of_driver() == (12, 8)
    nvml.nvmlSystemGetCudaDriverVersion_v2 = refuse
    assert cuda_of_driver() is None


def test_a_machine_without_nvml_runs_no_cuda(monkeypatch: pytest.MonkeyPatch):
    """No package or no driver: there is nothing to read."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert cuda_of_driver() is None
