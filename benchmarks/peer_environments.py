"""The peers' own environments, built once by uv and kept in the user's cache."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from interleaved import FOLDER, say
from platformdirs import user_cache_path
from uv import find_uv_bin

_REQUIREMENTS = FOLDER / "requirements-peers.txt"


def peer_command(environment: str, program: str) -> list[str]:
    """How to run peers/`program` in the environment that requirements-peers.txt calls so."""
    return [str(_python(environment)), str(FOLDER / "peers" / program)]


def peer_program(environment: str, program: str) -> list[str]:
    """How to run a program that the environment's packages install."""
    return [str(_python(environment).parent / program)]


def _python(name: str) -> Path:
    lines = _lines(name)
    digest = hashlib.sha256("\n".join([sys.version, *lines]).encode()).hexdigest()[:12]
    folder = user_cache_path("enginehouse-benchmarks") / f"{name}-{digest}"
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        say(f"building {folder}")
        uv = find_uv_bin()
        make = [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)]
        subprocess.run(make, check=True)
        install = [uv, "pip", "install", "--quiet", "--python", str(python), *lines]
        subprocess.run(install, check=True)
        ready.touch()
    return python


def _lines(name: str) -> list[str]:
    _, mark, rest = _REQUIREMENTS.read_text().partition(f"# [{name}]\n")
    if not mark:
        sys.exit(f"{_REQUIREMENTS} has no environment [{name}]")
    section = rest.partition("\n# [")[0]
    return [line for line in section.splitlines() if line and not line.startswith("#")]
