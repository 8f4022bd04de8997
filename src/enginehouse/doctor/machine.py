"""What this machine is and has, as far as `enginehouse doctor` judges it."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from enginehouse.processes.cpu import Cpu, read_cpu
from enginehouse.store.layout import Layout

_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - looked at, not written to
_COMPILERS = ("gcc", "cc", "clang")
_COMPILERS_CXX = ("g++", "c++", "clang++")
_DRIVER_TIMEOUT = 20.0


@dataclass(frozen=True)
class Folder:
    """A folder, or the nearest one above it that is there. `problem`: why it cannot be written."""

    path: Path
    free_bytes: int
    problem: str | None


@dataclass(frozen=True)
class Gpu:
    """One GPU, as nvidia-smi describes it; memory in MiB."""

    name: str
    total: float
    used: float
    capability: float | None


@dataclass(frozen=True)
class Driver:
    """What nvidia-smi said. `problem` is set if it is there and does not work."""

    version: str = ""
    cuda: str = ""
    gpus: tuple[Gpu, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class Machine:
    """The facts, without a judgement. Memory in bytes; `driver` is None without nvidia-smi."""

    python: tuple[int, int, int]
    system: str
    architecture: str
    libc: str
    cores: int
    cpu: Cpu
    memory: int
    available: int
    shared_memory: int | None
    open_files: tuple[int, int]
    folders: Mapping[str, Folder]
    compiler: str | None
    compiler_cxx: str | None
    python_headers: bool
    uv: str | None
    driver: Driver | None
    hub_token: bool
    environ: Mapping[str, str]


def look_at_machine(layout: Layout) -> Machine:
    """Look; writes nothing that stays. Blocks for as long as nvidia-smi takes (20 s at most)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    memory = psutil.virtual_memory()
    limit = _container_limit() or memory.total
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return Machine(
        python=sys.version_info[:3],
        system=platform.system(),
        architecture=platform.machine(),
        libc=" ".join(platform.libc_ver()),
        cores=_cores(),
        cpu=read_cpu(),
        memory=min(memory.total, limit),
        available=min(memory.available, limit),
        shared_memory=_size_of(_SHARED_MEMORY),
        open_files=(soft, hard),
        folders={"cache": _folder(layout.cache), "state": _folder(layout.state)},
        compiler=_first(_COMPILERS, "CC"),
        compiler_cxx=_first(_COMPILERS_CXX, "CXX"),
        python_headers=headers.exists(),
        uv=_uv(),
        driver=_driver(),
        hub_token=_has_hub_token(),
        environ=dict(os.environ),
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _container_limit() -> int | None:
    try:
        return int(_CONTAINER_LIMIT.read_text())
    except (OSError, ValueError):  # none, or "max"
        return None


def _size_of(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).total
    except OSError:
        return None


def _folder(wanted: Path) -> Folder:
    there = next(path for path in (wanted, *wanted.parents) if path.exists())
    problem = None
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        problem = f"{there}: {error.strerror}"
    return Folder(path=wanted, free_bytes=shutil.disk_usage(there).free, problem=problem)


def _first(names: tuple[str, ...], variable: str) -> str | None:
    given = os.environ.get(variable)
    wanted = (given, *names) if given else names
    return next((found for name in wanted if (found := shutil.which(name))), None)


def _uv() -> str | None:
    try:
        import uv

        return uv.find_uv_bin()
    except (ImportError, FileNotFoundError):
        return None


def _has_hub_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def _driver() -> Driver | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = "--query-gpu=driver_version,name,memory.total,memory.used,compute_cap"
    banner = _ask(program)
    rows = _ask(program, query, "--format=csv,noheader,nounits")
    if (problem := banner.problem or rows.problem) is not None:
        return Driver(problem=problem)
    cuda = re.search(r"CUDA (?:UMD )?Version:\s*([\d.]+)", banner.said)
    fields = [[cell.strip() for cell in row.split(",")] for row in rows.said.splitlines() if row]
    return Driver(
        version=fields[0][0] if fields else "",
        cuda=cuda[1] if cuda else "",
        gpus=tuple(
            Gpu(
                name=name,
                total=_number(total) or 0.0,
                used=_number(used) or 0.0,
                capability=_number(capability),
            )
            for _, name, total, used, capability in fields
        ),
    )


@dataclass(frozen=True)
class _Answer:
    said: str = ""
    problem: str | None = None


def _ask(program: str, *arguments: str) -> _Answer:
    try:
        done = subprocess.run(
            [program, *arguments],
            capture_output=True,
            text=True,
            timeout=_DRIVER_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _Answer(problem=f"it did not answer within {_DRIVER_TIMEOUT:.0f} s")
    except OSError as error:
        return _Answer(problem=str(error))
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        return _Answer(problem=lines[0] if lines else f"it ended with status {done.returncode}")
    return _Answer(said=done.stdout)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # "[N/A]"
        return None
