"""What NVIDIA's driver says of this machine's GPUs, through NVML (package nvidia-ml-py).

Nothing here raises: without the package, a driver or an answer there is no reading. Every call
opens and closes NVML, which blocks for milliseconds, and for a second or so where the driver's
persistence mode is off.
"""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from enginehouse.results.activity import GpuReading

PROCESSES = Path("/proc")
# PROC_PID_INIT_INO of the kernel's include/linux/proc_ns.h.
FIRST_PID_NAMESPACE = "pid:[4026531836]"


def read_gpus() -> tuple[GpuReading, ...]:
    """Every GPU that answers, by index; empty where there is no NVML, driver or GPU. Blocks."""
    readings = []
    with _opened() as nvml:
        for index, handle in _handles(nvml):
            with contextlib.suppress(nvml.NVMLError):
                memory = _told(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
                rates = _told(nvml, nvml.nvmlDeviceGetUtilizationRates, handle)
                reading = GpuReading(
                    index=index,
                    uuid=nvml.nvmlDeviceGetUUID(handle),
                    name=nvml.nvmlDeviceGetName(handle),
                    used_bytes=memory and int(memory.used),
                    total_bytes=memory and int(memory.total),
                    load=rates and rates.gpu / 100,
                )
                readings.append(reading)
    return tuple(readings)


def memory_by_pid() -> Mapping[int, int]:
    """Bytes of GPU memory of every process that computes there, summed over the GPUs. Blocks.

    A process whose memory the driver does not tell is left out. In a container NVML may give the
    host's pids, so there a pid counts only if the process of that pid here has a GPU open: no entry
    then proves nothing, and `read_gpus` has the whole GPU's memory.
    """
    held: dict[int, int] = defaultdict(int)
    with _opened() as nvml:
        for _, handle in _handles(nvml):
            processes = _told(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle)
            for process in processes or ():
                if process.usedGpuMemory is not None:
                    held[process.pid] += process.usedGpuMemory
    if _pids_are_the_hosts():
        return dict(held)
    return {pid: memory for pid, memory in held.items() if _has_gpu_open(pid)}


def cuda_of_driver() -> tuple[int, int] | None:
    """The newest CUDA that the driver runs, such as (12, 8); None without a driver. Blocks."""
    with _opened() as nvml:
        version = _told(nvml, nvml.nvmlSystemGetCudaDriverVersion_v2)
    return (version // 1000, version % 1000 // 10) if version else None


@contextlib.contextmanager
def _opened() -> Iterator[Any]:
    """NVML, or a stand-in without a GPU."""
    try:
        nvml = import_module("pynvml")
    except ImportError:
        yield _NoNvml
        return
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        yield _NoNvml
        return
    try:
        yield nvml
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


class _NoNvml:
    class NVMLError(Exception):
        """Never raised."""

    @staticmethod
    def nvmlDeviceGetCount() -> int:  # noqa: N802 (NVML's name)
        return 0

    @staticmethod
    def nvmlSystemGetCudaDriverVersion_v2() -> int:  # noqa: N802
        return 0


def _handles(nvml: Any) -> Iterator[tuple[int, Any]]:
    for index in range(_told(nvml, nvml.nvmlDeviceGetCount) or 0):
        handle = _told(nvml, nvml.nvmlDeviceGetHandleByIndex, index)
        if handle is not None:
            yield index, handle


def _told(nvml: Any, question: Callable[..., Any], *arguments: Any) -> Any:
    """The driver's answer; None where it has none (not supported, no permission, GPU lost)."""
    try:
        return question(*arguments)
    except nvml.NVMLError:
        return None


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
