"""What some rules add to the words they matched: other units, the package of a library."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from enginehouse.diagnosis.rule import Details, Surroundings, groups

SIZE = r"[\d.]{1,12} [KMGT]?i?B(?:ytes)?"
_SYSTEM_PACKAGES = {
    "libnuma.so": "libnuma1 (numactl-libs on Fedora)",
    "libGL.so": "libgl1",
    "libgomp.so": "libgomp1",
    "libsndfile.so": "libsndfile1",
    "libibverbs.so": "libibverbs1",
    "librdmacm.so": "librdmacm1",
    "libtcmalloc": "libtcmalloc-minimal4",
    "libmpi.so": "libopenmpi3 (or libopenmpi40)",
    "libstdc++.so": "libstdc++6",
    "libpython3": "of the same name (libpython3.X)",
}
_PYTHON_PACKAGES = {
    "libcudart.so": "nvidia-cuda-runtime",
    "libnvrtc": "nvidia-cuda-nvrtc",
    "libcublas": "nvidia-cublas",
    "libcudnn": "nvidia-cudnn",
    "libcusparseLt": "nvidia-cusparselt",
    "libcusparse.so": "nvidia-cusparse",
    "libcusolver": "nvidia-cusolver",
    "libcufft": "nvidia-cufft",
    "libcurand": "nvidia-curand",
    "libcufile": "nvidia-cufile",
    "libcupti": "nvidia-cuda-cupti",
    "libnvJitLink": "nvidia-nvjitlink",
    "libnvToolsExt": "nvidia-nvtx",
    "libnccl": "nvidia-nccl",
    "libnvshmem": "nvidia-nvshmem",
}
_TORCH = ("libtorch", "libc10", "libshm.so")


def _library(match: re.Match[str], around: Surroundings) -> Mapping[str, str]:
    name = groups(match, around)["library"]
    again = f"rebuild the environment: {around.rebuild}"
    if folder := _folder_with(name, around.packages):
        where = f"; the environment has it in {folder}"
        fix = f"let the loader look there: --env LD_LIBRARY_PATH={folder}"
    elif name.startswith(("libcuda.so", "libnvidia-")):
        where = ""
        fix = "install NVIDIA's driver; in a container, start it with --gpus all"
    elif name.startswith(_TORCH):
        where = "; it belongs to torch"
        fix = f"the environment is incomplete, or was built for another machine: {again}"
    elif package := _package_of(name):
        where = f"; it belongs to {package}"
        fix = f"install {package}, or {again}"
    else:
        where = ""
        fix = f"install the system package that contains it, or {again}"
    return {"library": name, "where": where, "fix": fix}


def _package_of(library: str) -> str | None:
    for start, package in _SYSTEM_PACKAGES.items():
        if library.startswith(start):
            return f"the system package {package}"
    for start, package in _PYTHON_PACKAGES.items():
        if library.startswith(start):
            major = re.search(r"\.so\.(1[1-9])\b", library)
            version = f" for CUDA {major[1]}" if major and package.startswith("nvidia-cu") else ""
            return f"the Python package {package}{version}"
    return None


def _folder_with(library: str, packages: Path | None) -> Path | None:
    """The folder of an environment that has a library; the loader looks in none of them."""
    if packages is None:
        return None
    places = ("nvidia/*/lib", "nvidia/*/lib64", "*/lib", "*.libs", "../..", "../../../lib")
    for place in places:
        for path in packages.glob(f"{place}/{library}"):
            return path.parent.resolve()
    return None


def _missing_package(match: re.Match[str], around: Surroundings) -> Mapping[str, str]:
    name = groups(match, around)["name"]
    return {"name": name, "package": name.partition(".")[0]}


def _driver(match: re.Match[str], around: Surroundings) -> Mapping[str, str]:  # noqa: ARG001
    number = int(match["version"] or 0)  # 12080 is 12.8
    return {"version": f" (CUDA {number // 1000}.{number % 1000 // 10})" if number else ""}


def _cuda_memory(match: re.Match[str], around: Surroundings) -> Mapping[str, str]:
    # In a container the engine itself may be listed as such a process, by its number outside.
    said = match.string[match.start() :]
    others = re.search(rf"Process \d+ has {SIZE}", said) and "this process has" in said
    free = re.search(rf"total capacity of ({SIZE}) of which ({SIZE}) is free", said)
    wanted = match["wanted"]
    return {
        "wanted": f": {wanted} more were needed" if wanted else "",
        "free": f", and {free[2]} of {free[1]} were free" if free else "",
        "fix": "another process uses memory of that GPU: stop it (`nvidia-smi` lists it), or use "
        "another GPU with CUDA_VISIBLE_DEVICES"
        if others
        else around.less_gpu_memory,
    }


def _host_memory(match: re.Match[str], around: Surroundings) -> Mapping[str, str]:  # noqa: ARG001
    wanted = match["wanted"]
    return {"wanted": f" when {int(wanted) / 2**30:.1f} GiB more were needed" if wanted else ""}


def _without_torch(match: re.Match[str], around: Surroundings) -> Mapping[str, str]:
    return {name: value.replace("torch.", "") for name, value in groups(match, around).items()}


def _capabilities(match: re.Match[str], around: Surroundings) -> Mapping[str, str]:
    said = groups(match, around)
    return {n: f"{int(v) / 10:.1f}" if v.isdigit() else v for n, v in said.items()}  # 89 is 8.9


DETAILS: Mapping[str, Details] = {
    "library": _library,
    "missing_package": _missing_package,
    "driver": _driver,
    "cuda_memory": _cuda_memory,
    "host_memory": _host_memory,
    "without_torch": _without_torch,
    "capabilities": _capabilities,
}
