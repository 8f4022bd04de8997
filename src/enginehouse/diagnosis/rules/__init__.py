"""The rules that all engines share: torch, CUDA, NCCL, compilers, the loader, the hub, the disk.

Their order is that of how specific they are: within one traceback the first that fits decides, so a
missing library comes before the kernels that could not be loaded without it. The texts are those of
many versions; each rule has a text in tests/engines/diagnosis that it must know, and one that
resembles it and that it must not.
"""

from enginehouse.diagnosis.rules import (
    command_line,
    communication,
    cuda,
    devices,
    general,
    hub,
    libraries,
    memory,
    model,
    packages,
    refusals,
    system,
    toolchain,
)

__all__ = ["LOST_CONNECTION", "RULES"]

LOST_CONNECTION = communication.LOST_CONNECTION
RULES = (
    *command_line.RULES,
    *devices.RULES,
    *system.RULES,
    *libraries.RULES,
    *toolchain.RULES,
    *packages.RULES,
    *cuda.RULES,
    *memory.RULES,
    *hub.RULES,
    *model.RULES,
    *communication.RULES,
    *general.RULES,
    *refusals.RULES,
)
