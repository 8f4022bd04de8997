"""Shared libraries and compiled extensions that do not load."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from enginehouse.diagnosis.kinds import FailureKind
from enginehouse.diagnosis.rule import Rule, Surroundings

K = FailureKind
_PACKAGES = (
    ("libnuma.so", "the system's package libnuma1 (numactl-libs on Fedora)"),
    ("libGL.so", "the system's package libgl1"),
    ("libgomp.so", "the system's package libgomp1"),
    ("libsndfile.so", "the system's package libsndfile1"),
    ("libibverbs.so", "the system's package libibverbs1"),
    ("librdmacm.so", "the system's package librdmacm1"),
    ("libtcmalloc", "the system's package libtcmalloc-minimal4"),
    ("libmpi.so", "the system's package libopenmpi3 (or libopenmpi40)"),
    ("libstdc++.so", "the system's package libstdc++6"),
    ("libpython3", "the system's package of the same name (libpython3.X)"),
    ("libcudart.so", "the Python package nvidia-cuda-runtime"),
    ("libnvrtc", "the Python package nvidia-cuda-nvrtc"),
    ("libcublas", "the Python package nvidia-cublas"),
    ("libcudnn", "the Python package nvidia-cudnn"),
    ("libcusparseLt", "the Python package nvidia-cusparselt"),
    ("libcusparse.so", "the Python package nvidia-cusparse"),
    ("libcusolver", "the Python package nvidia-cusolver"),
    ("libcufft", "the Python package nvidia-cufft"),
    ("libcurand", "the Python package nvidia-curand"),
    ("libcufile", "the Python package nvidia-cufile"),
    ("libcupti", "the Python package nvidia-cuda-cupti"),
    ("libnvJitLink", "the Python package nvidia-nvjitlink"),
    ("libnvToolsExt", "the Python package nvidia-nvtx"),
    ("libnccl", "the Python package nvidia-nccl"),
    ("libnvshmem", "the Python package nvidia-nvshmem"),
)
_OF_TORCH = ("libtorch", "libc10", "libshm.so")


def _library(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:
    name = found["library"]
    if folder := _folder_with(name, around.packages):
        fix = f"let the loader look there, too: --env LD_LIBRARY_PATH={folder}"
        return {"library": name, "where": f"; the environment has it in {folder}", "fix": fix}
    package = next((text for start, text in _PACKAGES if name.startswith(start)), None)
    again = f"make the environment again: {around.rebuild}"
    if name.startswith(("libcuda.so", "libnvidia-")):
        fix = "install NVIDIA's driver; in a container, start it with --gpus all"
    elif name.startswith(_OF_TORCH):
        package = "torch"
        fix = f"the environment is not whole, or made for another machine: {again}"
    elif package is not None:
        fix = f"install {package}{_suffix(package, name)}, or {again}"
    else:
        fix = f"install the system's package that has it, or {again}"
    where = f"; it belongs to {package}" if package else ""
    return {"library": name, "where": where, "fix": fix}


def _suffix(package: str, library: str) -> str:
    """The CUDA version that a library's own version gives away, for the package's name."""
    major = re.search(r"\.so\.(1[1-9])\b", library)
    if not package.startswith("the Python package nvidia-cu") or major is None:
        return ""
    return f" for CUDA {major[1]}"


def _folder_with(library: str, packages: Path | None) -> Path | None:
    """The folder of an environment that has a library; the loader looks in none of them."""
    if packages is None:
        return None
    places = ("nvidia/*/lib", "nvidia/*/lib64", "*/lib", "*.libs", "../..", "../../../lib")
    for place in places:
        for found in packages.glob(f"{place}/{library}"):
            return found.parent.resolve()
    return None


def _library_of_any(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:
    name = found["library"] or found["loader"] or found["dyld"] or found["other"]
    first = re.search(r"(?P<library>.+)", name)
    assert first is not None
    return _library(first, around)


RULES = (
    Rule(
        K.MISSING_LIBRARY,
        r"Failed to import from \w+\.\w+ with "
        r".{0,120}?(?P<library>lib[\w.+\-]{1,60}\.so[\w.]{0,20})"
        r": cannot open shared object file",
        "a shared library that {engine}'s compiled part needs is not found: {library}{where}",
        "{fix}",
        _library,
        spoken=True,
    ),
    Rule(
        K.WRONG_LIBRARY,
        r"Failed to import from \w+\.\w+ with .{0,300}?(?:undefined symbol: (?P<symbol>\w{1,120})"
        r"|version [`'](?P<version>(?:GLIBC|GLIBCXX|CXXABI)_[\d.]{1,12})' not found)",
        "the compiled part of {engine} does not fit the torch or the system that it is loaded into "
        "({symbol}{version})",
        "install {engine} and torch together, from one source ({rebuild}); for GLIBC this system "
        "is too old: use a newer one or a container",
        spoken=True,
    ),
    Rule(
        K.MISSING_LIBRARY,
        r"(?P<library>lib[\w.+\-]{1,60}\.so[\w.]{0,20})(?: \(deleted\))?: (?:cannot open "
        r"shared object file|cannot enable executable stack)"
        r"|error while loading shared libraries: (?P<loader>[^:\n]{1,100}):"
        r"|Library not loaded: (?:@rpath/)?(?P<dyld>[^\s]{1,120})"
        r"|(?:Could not load|[Ff]ailed to load|Unable to (?:load|open)|cannot load)[^\n]{0,60}?"
        r"(?P<other>lib[\w.+\-]{1,60}\.so[\w.]{0,20})",
        "a shared library is not found: {library}{where}",
        "{fix}",
        _library_of_any,
    ),
    Rule(
        K.WRONG_LIBRARY,
        r"version [`'](?P<version>(?:GLIBC|GLIBCXX|CXXABI)_[\d.]{1,12})' not found",
        "a library of this system is older than the one that this build was made with ({version})",
        "unset LD_LIBRARY_PATH; if it stays, this system is too old (or a conda environment brings "
        "an old libstdc++): use a newer one or a container",
        spoken=True,
    ),
    Rule(
        K.WRONG_LIBRARY,
        r"undefined symbol: (?P<symbol>\w{1,120})",
        "a compiled extension or a shared library was made for another version of what it is "
        "loaded into, mostly torch: it misses {symbol}",
        "unset LD_LIBRARY_PATH, or take the system's CUDA out of it; otherwise install the "
        "extension again for the torch that is there ({rebuild})",
    ),
    Rule(
        K.WRONG_LIBRARY,
        r"DLL load failed|WinError 126\b",
        "a compiled extension does not load on Windows: a DLL is missing or of another version",
        "use WSL or Linux; vLLM and SGLang are not made for Windows",
    ),
)
