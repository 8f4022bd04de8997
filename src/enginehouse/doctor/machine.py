"""The facts about this machine that `enginehouse doctor` judges."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from enginehouse.processes.cpu import Cpu, read_cpu
from enginehouse.processes.gpus import Driver, read_driver
from enginehouse.store.layout import Layout

_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - looked at, not written to
_COMPILERS = ("gcc", "cc", "clang")
_COMPILERS_CXX = ("g++", "c++", "clang++")


@dataclass(frozen=True)
class Folder:
    """A folder, or its nearest existing parent. `problem`: why it cannot be written."""

    path: Path
    free_bytes: int
    problem: str | None


@dataclass(frozen=True)
class Machine:
    """The facts, without a judgement. Memory in bytes; `driver` is None if there is none."""

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
    """Look; leaves nothing written. Blocks for milliseconds, or for as long as NVML takes."""
    from huggingface_hub import get_token

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
        driver=read_driver(),
        hub_token=get_token() is not None,
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
    return next((program for name in wanted if (program := shutil.which(name))), None)


def _uv() -> str | None:
    try:
        import uv

        return uv.find_uv_bin()
    except (ImportError, FileNotFoundError):
        return None
