"""Which engine environment to build, decided before anything is changed."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
from packaging.version import InvalidVersion, Version

from enginehouse.core.errors import ConfigurationError, UnknownNameError
from enginehouse.provisioning.installation import Installation

VARIANTS = ("cpu", "cuda")
# The variant of what computes nothing itself, such as an evaluation harness.
ANY = "any"
_VARIANTS_IN_WORDS = {"cpu": "CPUs", "cuda": "CUDA"}
DEVICES = Path("/dev")
_TORCH = re.compile(r"^(torch|torchvision|torchaudio|torchcodec)==([^\s;+]+)(?=\s|$)", re.MULTILINE)
_CUDA_RUNTIME = re.compile(r"^nvidia-cuda-runtime(?:-cu\d+)?==(\d+)\.(\d+)", re.MULTILINE)


class EnvironmentPlan(msgspec.Struct, frozen=True, kw_only=True):
    """An environment to be built: what will be in it, and where that comes from.

    `requirements` is the pinned file's text, or what was resolved for a version that is not pinned;
    `pinned` says which. `find_links` (comma-separated) and `torch_backend` say where uv gets torch;
    they, and `base_python`'s place, do not count for the content key. `build_settings` are those of
    an engine that is compiled here; None for one that comes built.
    """

    engine: str
    version: str
    variant: str
    python_version: str
    base_python: Path
    requirements: str
    torch_backend: str | None = None
    find_links: str | None = None
    build_settings: str | None = None
    pinned: bool = True

    @property
    def requirements_digest(self) -> str:
        """SHA-256 of the requirements' text."""
        return hashlib.sha256(self.requirements.encode()).hexdigest()

    @property
    def key(self) -> str:
        """The content address: two plans of the same key give the same environment."""
        # A home may be shared by machines of different kinds, hence the platform.
        content = f"{sys.platform} {platform.machine()}\n{self.requirements}"
        if self.build_settings is not None:
            content += self.build_settings
        digest = hashlib.sha256(content.encode()).hexdigest()[:12]
        return f"{self.engine}-{self.version}-{self.variant}-py{self.python_version}-{digest}"

    @property
    def constraints(self) -> str:
        """What uv must not choose for the requirements, as a constraints file; often empty.

        For uv, 2.13.0+cpu is a newer 2.13.0, and a folder of wheels may hold it beside others.
        """
        if self.variant != "cuda":
            return ""
        pins = _TORCH.findall(self.requirements)
        return "".join(f"{name}!={version}+cpu\n" for name, version in pins)

    def describe(self) -> str:
        """A few lines for people."""
        places = {
            "PIP_FIND_LINKS, then the registry": self.find_links,
            f"uv's torch backend {self.torch_backend}": self.torch_backend,
        }
        source = next((text for text, used in places.items() if used), "the registry")
        count = sum(1 for line in self.requirements.splitlines() if "==" in line)
        packages = "packages    " if self.variant == ANY else "torch from  "
        return (
            f"{self.engine} {self.version}{in_words(self.variant)}, {count} pinned requirements\n"
            f"  environment  {self.key}\n"
            f"  tested       {self._tested()}\n"
            + (
                f"  compiled     here, for this processor, in minutes; {self.build_settings}"
                if self.build_settings
                else f"  Python       {self.python_version}, {self.base_python}\n"
                f"  {packages} {source}"
            )
        )

    def _tested(self) -> str:
        if not self.pinned:
            return "not by us: resolved for this machine"
        if self.variant == "cuda":
            return "pinned, not run on a GPU by us"
        return "pinned"


def plan_environment(
    installation: Installation,
    *,
    version: str | None = None,
    variant: str | None = None,
    has_cuda: Callable[[], bool] | None = None,
) -> EnvironmentPlan:
    """Plan an engine's environment; None means its default version, and what this machine has.

    Only reads files and the environment. Raises ConfigurationError for what is not pinned: see
    `provisioning.versions` for other versions.
    """
    variant = choose_variant(installation, variant, has_cuda=has_cuda)
    wanted = version or installation.default_version
    pinned = pinned_version(installation, wanted, variant)
    if pinned is None:
        raise not_pinned(installation, wanted, variant)
    assert installation.requirements is not None
    file = installation.requirements / f"{pinned}-{variant}.txt"
    return EnvironmentPlan(
        engine=installation.engine,
        version=pinned,
        variant=variant,
        python_version=python_version(),
        base_python=base_python(),
        requirements=file.read_text(encoding="utf-8"),
        torch_backend=cpu_backend(variant),
        find_links=find_links(),
        build_settings=installation.build_settings(pinned, variant),
    )


def choose_variant(
    installation: Installation,
    variant: str | None,
    *,
    has_cuda: Callable[[], bool] | None = None,
) -> str:
    """The wanted variant, or the one for this machine.

    Raises UnknownNameError, and ConfigurationError if the installation has no variants.
    """
    if ANY in installation.distributions:
        if variant in {None, ANY}:
            return ANY
        raise ConfigurationError(
            f"{installation.engine} has no variants", fix="leave out --variant"
        )
    if variant is None:
        return "cuda" if (has_cuda or cuda_is_there)() else "cpu"
    if variant not in VARIANTS:
        raise UnknownNameError("variant", variant, VARIANTS)
    return variant


def in_words(variant: str) -> str:
    """What follows a version: " for cpu", or nothing where there are no variants."""
    return "" if variant == ANY else f" for {variant}"


def cuda_is_there() -> bool:
    """Whether this machine shows us an NVIDIA GPU; loads no driver and starts nothing."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1", "NoDevFiles"}:
        return False

    return any(DEVICES.glob("nvidia[0-9]*")) or (
        (DEVICES / "dxg").exists() and Path("/usr/lib/wsl/lib/libcuda.so.1").exists()
    )


def pinned_versions(installation: Installation, variant: str) -> tuple[str, ...]:
    """The versions that are pinned for a variant, newest first."""
    if installation.requirements is None:
        return ()
    end = f"-{variant}.txt"
    names = [file.name for file in installation.requirements.iterdir()]
    versions = [name.removesuffix(end) for name in names if name.endswith(end)]
    return tuple(sorted(versions, key=Version, reverse=True))


def pinned_version(installation: Installation, version: str, variant: str) -> str | None:
    """The pinned version that `version` means (0.32 is 0.32.0), or None."""
    try:
        wanted = Version(version)
    except InvalidVersion:
        return None
    pinned = pinned_versions(installation, variant)
    return next((known for known in pinned if Version(known) == wanted), None)


def cuda_version(requirements: str) -> tuple[int, int] | None:
    """The CUDA that the torch of these requirements was built for: (13, 0); None without one."""
    match = _CUDA_RUNTIME.search(requirements)
    return (int(match[1]), int(match[2])) if match else None


def not_pinned(installation: Installation, version: str, variant: str) -> ConfigurationError:
    """The error for a version that cannot be planned without asking a registry."""
    engine = installation.engine
    known = ", ".join(pinned_versions(installation, variant))
    machine = in_words(variant)
    if not known:
        others = [_VARIANTS_IN_WORDS[v] for v in VARIANTS if pinned_versions(installation, v)]
        return ConfigurationError(
            f"{engine} is provisioned for {' and '.join(others)} only here"
            if others
            else f"{engine} is not provisioned by Enginehouse",
            fix="take another engine, or any other install with --python PATH"
            + (f" or {installation.variables[0]}" if installation.variables else "")
            + "; --variant says which machine is meant",
        )
    if variant in installation.distributions:
        return ConfigurationError(
            f"{engine} {version} is neither pinned nor installed here{machine}",
            why=f"pinned: {known}",
            fix=f"`enginehouse install {engine} --version {version}` resolves any published "
            "version; or use an install of your own with --python PATH",
        )
    return ConfigurationError(
        f"{engine} {version} is not pinned here{machine}",
        why=f"pinned: {known}",
        fix="take one of these, or use any other install with --python PATH",
    )


def base_python() -> Path:
    """The interpreter that our own virtual environment was made from."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    python = Path(sys.base_prefix) / "bin" / version
    return python if python.exists() else Path(sys.executable)


def python_version() -> str:
    """The version of the interpreter that environments are made with: "3.11"."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def find_links() -> str | None:
    """The value for UV_FIND_LINKS; pip's own setting counts too."""
    if own := os.environ.get("UV_FIND_LINKS"):
        return own
    links = os.environ.get("PIP_FIND_LINKS", "").split()
    return ",".join(links) or None  # pip separates them by spaces, uv by commas


def cpu_backend(variant: str) -> str | None:
    """Uv's name for the index of torch's CPU build, None if torch comes from elsewhere.

    The CUDA set is pinned to the CUDA libraries of the registry's own torch build, which is the
    one that vLLM's wheel was compiled against: any other backend would not fit it.
    """
    if variant == "cuda" or find_links() or os.environ.get("UV_TORCH_BACKEND"):
        return None
    return "cpu"
