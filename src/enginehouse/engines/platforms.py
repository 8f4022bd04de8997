"""Where engines run."""

from __future__ import annotations

from enginehouse.engines.base import Machine

_ARCHITECTURES = ("x86_64", "amd64", "aarch64", "arm64")


def needs_linux(machine: Machine) -> str | None:
    """What keeps wheels for Linux, glibc, x86-64 and arm64 from running on a machine, or None."""
    linux = machine.system.lower() == "linux"
    glibc = machine.libc is None or machine.libc.startswith("glibc")
    if linux and glibc and machine.architecture.lower() in _ARCHITECTURES:
        return None
    return (
        "runs on Linux with glibc, on x86-64 or arm64; this is "
        f"{machine.system} {machine.architecture}"
    )
