"""Writes the pinned requirement files of our environments, with their files' hashes.

`python tools/pin_engines.py` resolves every set below with uv and rewrites the file
<version>-<variant>.txt in the folder that its Installation names; with `--check` it only says
whether one would change (exit status 1). Versions that are pinned stay as they are; with
`--upgrade` they are the newest that fit. Needs a package registry, `uv` and `packaging`. To add a
version, add a line to SETS and run it.

The file of llamacpp names one source package and is kept by hand.
"""

# ruff: noqa: INP001 (a command, not a package)
from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import uv
from packaging.markers import Marker
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

from enginehouse.commands.installations import load_installation
from enginehouse.provisioning.installation import Distribution
from enginehouse.provisioning.plans import in_words

LOWEST_PYTHON = "3.11"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
MACHINES = ("x86_64", "aarch64")


@dataclass(frozen=True)
class RequirementSet:
    """One version of an engine, the trainer or a harness, for one kind of accelerator."""

    engine: str
    version: str
    variant: str

    @property
    def path(self) -> Path:
        """Where its pinned file lies."""
        folder = load_installation(self.engine).requirements
        return Path(str(folder), f"{self.version}-{self.variant}.txt")

    @property
    def name(self) -> str:
        """What the command line calls it."""
        return f"{self.engine}-{self.version}-{self.variant}"

    @property
    def distribution(self) -> Distribution:
        """The packages that it is made of."""
        return load_installation(self.engine).distributions[self.variant]


SETS = (
    RequirementSet("vllm", "0.33.0", "cuda"),
    *(
        RequirementSet("vllm", version, variant)
        for version in ("0.32.0", "0.31.0")
        for variant in ("cpu", "cuda")
    ),
    RequirementSet("hf", "5.19.0", "cpu"),
    RequirementSet("hf", "5.19.0", "cuda"),
    RequirementSet("sglang", "0.5.23", "cuda"),
    RequirementSet("trainer", "5.19.0", "cpu"),
    RequirementSet("trainer", "5.19.0", "cuda"),
    RequirementSet("lm-eval", "0.4.13", "any"),
    RequirementSet("inspect", "0.3.285", "any"),
)


def resolve(pinned: RequirementSet, *, upgrade: bool) -> list[dict[str, Any]]:
    """The whole set for every platform; what is pinned already stays, unless `upgrade`."""
    distribution = pinned.distribution
    with tempfile.TemporaryDirectory() as folder:
        wanted, overrides = Path(folder, "in.txt"), Path(folder, "overrides.txt")
        lock = Path(folder, "pylock.toml")
        first = f"{distribution.package}=={pinned.version}"
        wanted.write_text("\n".join([first, *distribution.besides]) + "\n")
        overrides.write_text(distribution.overrides)
        command = [
            *(uv.find_uv_bin(), "pip", "compile", "--quiet"),
            *("--universal", "--python-version", LOWEST_PYTHON),
            *("--format", "pylock.toml", "--output-file", str(lock)),
            *("--overrides", str(overrides), str(wanted)),
        ]
        if pinned.path.exists() and not upgrade:
            kept = Path(folder, "kept.txt")
            kept.write_text("".join(constraints_of(pinned.path.read_text(encoding="utf-8"))))
            command += ["--constraints", str(kept)]
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment_of(pinned)
        )
        if result.returncode:
            sys.exit(f"{pinned.name}: uv could not resolve it\n{result.stderr}")
        packages: list[dict[str, Any]] = tomllib.loads(lock.read_text())["packages"]
        return packages


def constraints_of(text: str) -> Iterator[str]:
    """The pinned versions of a file, as constraints on the machines that it is for.

    Other machines, which uv resolves too, may need other versions.
    """
    ours = " or ".join(f"platform_machine == '{machine}'" for machine in MACHINES)
    for line in text.splitlines():
        if line.startswith(("#", " ")):
            continue
        requirement, _, marker = line.removesuffix("\\").strip().partition(" ; ")
        yield f"{requirement} ; ({ours})" + (f" and ({marker})" if marker else "") + "\n"


def environment_of(pinned: RequirementSet) -> dict[str, str]:
    """Where uv looks for torch: its CPU build needs a place of its own, its CUDA build does not."""
    links = os.environ.get("PIP_FIND_LINKS")
    cleared = {name: value for name, value in os.environ.items() if name != "UV_FIND_LINKS"}
    if pinned.variant != "cpu":
        return cleared
    if links:
        return cleared | {"UV_FIND_LINKS": ",".join(links.split())}
    return cleared | {"UV_TORCH_BACKEND": "cpu"}


def lines_of(package: dict[str, Any]) -> list[str]:
    """A package of a pylock.toml as pip's requirement with hashes; [] if it is never installed."""
    line = f"{package['name']}=={package['version']}"
    if "marker" in package:
        marker = narrow(package["marker"])
        if marker is None:
            return []
        line += f" ; {marker}" if marker else ""
    hashes = [f"    --hash=sha256:{digest}" for digest in digests_of(package)]
    return [" \\\n".join([line, *hashes])]


def narrow(text: str) -> str | None:
    """The marker as far as it matters on MACHINES and PYTHONS: "" for always, None for never."""
    marker = Marker(text)
    holds = {
        (python, machine)
        for python, machine in itertools.product(PYTHONS, MACHINES)
        if marker.evaluate(environment(python, machine))
    }
    if not holds:
        return None
    pythons = tuple(python for python in PYTHONS if any((python, m) in holds for m in MACHINES))
    machines = tuple(machine for machine in MACHINES if any((p, machine) in holds for p in PYTHONS))
    if len(holds) != len(pythons) * len(machines):
        return text
    parts = []
    if pythons != PYTHONS:
        if pythons == PYTHONS[: len(pythons)]:
            parts.append(f"python_full_version < '{PYTHONS[len(pythons)]}'")
        elif pythons == PYTHONS[-len(pythons) :]:
            parts.append(f"python_full_version >= '{pythons[0]}'")
        else:
            return text
    if machines != MACHINES:
        parts.append(f"platform_machine == '{machines[0]}'")
    return " and ".join(parts)


def digests_of(package: dict[str, Any]) -> list[str]:
    """SHA-256 of every file that Linux may install; none of a package with a local version.

    Those come from torch's own index or from a folder of wheels. Which of the two, and so which
    file, is decided on the machine that installs: it is named by its version alone.
    """
    if "+" in package["version"]:
        return []
    files = [file for file in package.get("wheels", ()) if is_installable(file_name(file))]
    if "sdist" in package:
        files.append(package["sdist"])
    return sorted({file["hashes"]["sha256"] for file in files})


def file_name(file: dict[str, Any]) -> str:
    """The name of a file of a pylock.toml."""
    return unquote(file["url"].rpartition("/")[2])


def is_installable(wheel: str) -> bool:
    """Whether CPython of PYTHONS on Linux with glibc takes the wheel of this name."""
    _, _, _, tags = parse_wheel_filename(wheel)
    return any(tag in TAGS for tag in tags)


def installable_tags() -> frozenset[Tag]:
    """The tags of every interpreter and machine that the pinned files are for."""
    found = {
        tag
        for python, machine in itertools.product(PYTHONS, MACHINES)
        for tag in cpython_tags(version_of(python), platforms=platforms_of(machine))
    }
    newest = version_of(PYTHONS[-1])
    found.update(compatible_tags(newest, "cp" + PYTHONS[-1].replace(".", "")))
    for machine in MACHINES:
        found.update(compatible_tags(newest, platforms=platforms_of(machine)))
    return frozenset(found)


def version_of(python: str) -> tuple[int, int]:
    """`3.11` as numbers."""
    major, minor = python.split(".")
    return int(major), int(minor)


def platforms_of(machine: str) -> list[str]:
    """Every tag of a Linux with glibc, from the oldest that wheels name."""
    old = [f"manylinux{year}_{machine}" for year in ("1", "2010", "2014")]
    return [*(f"manylinux_2_{n}_{machine}" for n in range(5, 45)), *old, f"linux_{machine}", "any"]


TAGS = installable_tags()


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


def render(pinned: RequirementSet, *, upgrade: bool) -> str:
    """The pinned file's whole text."""
    lines = [line for package in resolve(pinned, upgrade=upgrade) for line in lines_of(package)]
    header = (
        f"# {pinned.engine} {pinned.version}{in_words(pinned.variant)}: "
        f"{pinned.distribution.package} and its needs\n"
        f"# on Linux, CPython {PYTHONS[0]} to {PYTHONS[-1]}. Written by tools/pin_engines.py.\n"
    )
    return header + "\n".join(lines) + "\n"


def main() -> None:
    """Rewrite or check every pinned file."""
    parser = argparse.ArgumentParser(description="Pin the engine environments.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 on a change")
    parser.add_argument("--upgrade", action="store_true", help="take newer versions of everything")
    parser.add_argument("names", nargs="*", help="sets to pin, such as vllm-0.33.0-cuda; or all")
    options = parser.parse_args()
    stale = False
    for pinned in SETS:
        if options.names and pinned.name not in options.names:
            continue
        text = render(pinned, upgrade=options.upgrade)
        same = pinned.path.exists() and pinned.path.read_text(encoding="utf-8") == text
        stale |= not same
        sys.stdout.write(f"{pinned.name}: {'as it was' if same else 'changed'}\n")
        if not options.check:
            pinned.path.write_text(text, encoding="utf-8")
    if options.check and stale:
        sys.exit(1)


if __name__ == "__main__":
    main()
