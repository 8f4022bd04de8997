"""Environments with other people's packages, as their users have them, for tests beside our own.

They are kept in the user's cache beside the engine environments, under a digest of their
requirements: CI builds each once per cache.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import uv
from filelock import FileLock

from enginehouse.provisioning.plans import find_links
from enginehouse.store.layout import Layout

_BUILD = 1800.0  # seconds


def ensure_packages(name: str, *, requirements: Path) -> Path:
    """The interpreter of the environment with exactly these packages, built on first use."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    digest = hashlib.sha256(requirements.read_bytes() + version.encode()).hexdigest()[:12]
    folder = Layout.from_environment().cache / "tests" / f"{name}-{digest}"
    python = folder / "bin" / "python"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock"), timeout=_BUILD):
        if (folder / "complete").exists():
            return python
        shutil.rmtree(folder, ignore_errors=True)
        env, backend = dict(os.environ), ["--torch-backend", "cpu"]
        if links := find_links():
            env["UV_FIND_LINKS"], backend = links, []
        install = ["pip", "install", "--python", str(folder), "--no-deps", "--compile-bytecode"]
        for words in (
            ["venv", "-p", sys.executable, str(folder)],
            [*install, *backend, "-r", str(requirements)],
        ):
            subprocess.run(
                [uv.find_uv_bin(), "--no-progress", *words],
                env=env,
                check=True,
                cwd=folder.parent,
                timeout=_BUILD,
            )
        (folder / "complete").touch()
    return python
