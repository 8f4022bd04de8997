"""What a CPU computes in, read from files as several kinds of machine have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginehouse.processes.cpu import read_cpu

AVX2 = "fpu sse2 fma avx avx2 f16c"
ZEN_4 = f"{AVX2} avx512f avx512bw avx512_bf16 avx512_vnni"
SAPPHIRE = f"{ZEN_4} amx_bf16 amx_tile avx512_fp16"


def x86(*cores: str) -> str:
    """An x86 machine's /proc/cpuinfo; the name says nothing, so the reader must not look at it."""
    return "\n".join(
        f"processor\t: {n}\nmodel name\t: Xeon avx512_bf16 Edition\nflags\t\t: {flags}\nbugs\t\t:\n"
        for n, flags in enumerate(cores)
    )


def arm(*cores: str) -> str:
    """An Arm machine's."""
    return "\n".join(
        f"processor\t: {n}\nFeatures\t: {flags}\nCPU part\t: 0xd4f\n"
        for n, flags in enumerate(cores)
    )


@pytest.mark.parametrize(
    ("machine", "text", "bfloat16", "float16", "evidence"),
    [
        ("x86_64", x86(AVX2, AVX2), False, False, "neither avx512_bf16 nor amx_bf16"),
        ("x86_64", x86(ZEN_4, ZEN_4), True, False, "has avx512_bf16"),
        ("x86_64", x86(SAPPHIRE), True, True, "avx512_bf16 and amx_bf16"),
        ("AMD64", x86(f"{AVX2} amx_bf16"), True, False, "has amx_bf16"),
        ("x86_64", x86(ZEN_4, AVX2), False, False, "neither"),
        ("aarch64", arm("fp asimd asimdhp bf16 i8mm"), True, True, "has bf16"),
        ("aarch64", arm("fp asimd asimdhp"), False, True, "lacks bf16"),
        ("aarch64", arm("fp asimd bf16", "fp asimd"), False, False, "lacks bf16"),
        ("ppc64le", "processor\t: 0\ncpu\t\t: POWER10\n", False, False, "does not list"),
        ("riscv64", arm("bf16"), False, False, "riscv64"),
        ("x86_64", "", False, False, "does not list"),
    ],
)
def test_by_what_every_core_has(tmp_path: Path, machine, text, bfloat16, float16, evidence):
    """Only flags count, and only those of all cores; the reason names what was looked for."""
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    cpu = read_cpu(cpuinfo=file, system="Linux", machine=machine)
    assert (cpu.bfloat16, cpu.float16) == (bfloat16, float16)
    assert evidence in cpu.evidence


@pytest.mark.parametrize("system", ["Darwin", "Windows", "FreeBSD"])
def test_elsewhere_float32_is_the_safe_choice(tmp_path: Path, system):
    """Nothing is read there, whatever lies in /proc."""
    file = tmp_path / "cpuinfo"
    file.write_text(x86(SAPPHIRE))
    cpu = read_cpu(cpuinfo=file, system=system, machine="arm64")
    assert not cpu.bfloat16
    assert cpu.evidence


def test_a_machine_without_proc(tmp_path: Path):
    """That is not an error."""
    assert not read_cpu(cpuinfo=tmp_path / "none", system="Linux", machine="x86_64").bfloat16


def test_this_machine():
    """It is read without arguments."""
    assert read_cpu().evidence
