"""Which 16-bit types this machine's CPU supports, read from the system and never guessed."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import msgspec

CPUINFO = Path("/proc/cpuinfo")
_X86 = {"x86_64", "amd64", "i686", "i386"}
_ARM = {"aarch64", "arm64"}
_FLAGS = re.compile(r"^(?:flags|Features)\s*:(.*)$", re.MULTILINE)


class Cpu(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the CPU has instructions for 16-bit types; `evidence` is what shows it for bfloat16.

    Without such instructions, an engine converts every value to float32 and back.
    """

    bfloat16: bool
    float16: bool
    evidence: str


def read_cpu(
    *, cpuinfo: Path = CPUINFO, system: str | None = None, machine: str | None = None
) -> Cpu:
    """What the CPU of this machine can do. Blocks for milliseconds; never raises.

    Only what every core supports counts. Outside Linux, and if nothing can be read, the answer is
    "neither": float32 works everywhere, and on macOS PyTorch is fast in float32 only.
    """
    system = system or platform.system()
    machine = (machine or platform.machine()).lower()
    if system == "Darwin":
        return _neither("PyTorch on macOS is fast in float32 only")
    if system != "Linux":
        return _neither(f"the CPU's instructions are not read on {system or 'this system'}")
    try:
        lines = _FLAGS.findall(cpuinfo.read_text(errors="replace"))
    except OSError:
        lines = []
    if not lines:
        return _neither(f"{cpuinfo} does not list the CPU's instructions")
    flags = set.intersection(*(set(line.split()) for line in lines))
    if machine in _X86:
        return _by_flags(flags, ("avx512_bf16", "amx_bf16"), {"avx512_fp16", "amx_fp16"})
    if machine in _ARM:
        return _by_flags(flags, ("bf16",), {"asimdhp"})
    return _neither(f"nothing is known of 16-bit types on {machine}")


def _by_flags(flags: set[str], bfloat16: tuple[str, ...], float16: set[str]) -> Cpu:
    present = [name for name in bfloat16 if name in flags]
    if present:
        evidence = f"the CPU has {' and '.join(present)}"
    elif len(bfloat16) > 1:
        evidence = f"the CPU has neither {' nor '.join(bfloat16)}"
    else:
        evidence = f"the CPU lacks {bfloat16[0]}"
    return Cpu(bfloat16=bool(present), float16=bool(flags & float16), evidence=evidence)


def _neither(evidence: str) -> Cpu:
    return Cpu(bfloat16=False, float16=False, evidence=evidence)
