"""What NVIDIA's driver says of this machine's GPUs, through NVML (package nvidia-ml-py).

Nothing here raises. Every call opens and closes NVML, which blocks for milliseconds, or for a
second or so if the driver's persistence mode is off.
"""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from enginehouse.results.activity import GpuReading

PROCESSES = Path("/proc")
# PROC_PID_INIT_INO of the kernel's include/linux/proc_ns.h.
FIRST_PID_NAMESPACE = "pid:[4026531836]"
_LIBRARY_NOT_FOUND = 12  # NVML_ERROR_LIBRARY_NOT_FOUND: no driver is installed


class Driver(msgspec.Struct, frozen=True, kw_only=True):
    """NVIDIA's driver and its GPUs by index, without those that do not answer.

    `cuda` is the newest CUDA that it runs, such as (12, 8). `problem` says why it does not answer.
    """

    version: str = ""
    cuda: tuple[int, int] | None = None
    gpus: tuple[GpuReading, ...] = ()
    problem: str | None = None


def read_driver() -> Driver | None:
    """The driver; None if there is none (or no NVML). Blocks."""
    try:
        with _nvml() as nvml:
            return Driver(
                version=_ask(nvml, nvml.nvmlSystemGetDriverVersion) or "",
                cuda=_cuda(nvml),
                gpus=_gpus(nvml),
            )
    except _UnavailableError as error:
        return Driver(problem=error.problem) if error.problem else None


def read_gpus() -> tuple[GpuReading, ...]:
    """Every GPU that answers, by index; empty without NVML, driver or GPU. Blocks."""
    with contextlib.suppress(_UnavailableError), _nvml() as nvml:
        return _gpus(nvml)
    return ()


def cuda_of_driver() -> tuple[int, int] | None:
    """The newest CUDA that the driver runs, such as (12, 8); None without a driver. Blocks."""
    with contextlib.suppress(_UnavailableError), _nvml() as nvml:
        return _cuda(nvml)
    return None


def memory_by_pid() -> Mapping[int, int]:
    """Bytes of GPU memory of every process that computes there, summed over the GPUs. Blocks.

    A process whose memory the driver does not report is left out. In a container NVML may give the
    host's pids, so there a pid counts only if the process of that pid here has a GPU open: no entry
    then proves nothing, and `read_gpus` has the whole GPU's memory.
    """
    held: dict[int, int] = defaultdict(int)
    with contextlib.suppress(_UnavailableError), _nvml() as nvml:
        for _, handle in _handles(nvml):
            for process in _ask(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle) or ():
                if process.usedGpuMemory is not None:
                    held[process.pid] += process.usedGpuMemory
    if _pids_are_the_hosts():
        return dict(held)
    return {pid: memory for pid, memory in held.items() if _has_gpu_open(pid)}


class _UnavailableError(Exception):
    """NVML cannot be used; `problem` is None if there simply is no driver."""

    def __init__(self, problem: str | None) -> None:
        super().__init__(problem)
        self.problem = problem


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    """The module, with NVML open. Raises _UnavailableError."""
    try:
        nvml = import_module("pynvml")
    except ImportError:
        raise _UnavailableError(None) from None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        missing = getattr(error, "value", None) == _LIBRARY_NOT_FOUND
        raise _UnavailableError(None if missing else str(error)) from error
    try:
        yield nvml
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _ask(nvml: Any, question: Callable[..., Any], *arguments: Any) -> Any:
    """The driver's answer; None if it has none (not supported, no permission, GPU lost)."""
    try:
        return question(*arguments)
    except nvml.NVMLError:
        return None


def _cuda(nvml: Any) -> tuple[int, int] | None:
    version = _ask(nvml, nvml.nvmlSystemGetCudaDriverVersion_v2)  # 12080 is 12.8
    return (version // 1000, version % 1000 // 10) if version else None


def _gpus(nvml: Any) -> tuple[GpuReading, ...]:
    readings = []
    for index, handle in _handles(nvml):
        memory = _ask(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
        rates = _ask(nvml, nvml.nvmlDeviceGetUtilizationRates, handle)
        capability = _ask(nvml, nvml.nvmlDeviceGetCudaComputeCapability, handle)
        with contextlib.suppress(nvml.NVMLError):
            reading = GpuReading(
                index=index,
                uuid=nvml.nvmlDeviceGetUUID(handle),
                name=nvml.nvmlDeviceGetName(handle),
                used_bytes=memory and int(memory.used),
                total_bytes=memory and int(memory.total),
                load=rates and rates.gpu / 100,
                capability=capability and float("{}.{}".format(*capability)),
            )
            readings.append(reading)
    return tuple(readings)


def _handles(nvml: Any) -> Iterator[tuple[int, Any]]:
    for index in range(_ask(nvml, nvml.nvmlDeviceGetCount) or 0):
        handle = _ask(nvml, nvml.nvmlDeviceGetHandleByIndex, index)
        if handle is not None:
            yield index, handle


def _pids_are_the_hosts() -> bool:
    try:
        return (PROCESSES / "self/ns/pid").readlink().name == FIRST_PID_NAMESPACE
    except OSError:
        return False


def _has_gpu_open(pid: int) -> bool:
    with contextlib.suppress(OSError):
        for opened in (PROCESSES / str(pid) / "fd").iterdir():
            with contextlib.suppress(OSError):
                if os.fspath(opened.readlink()).startswith("/dev/nvidia"):
                    return True
    return False
