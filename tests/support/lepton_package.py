"""An environment with leptonai, without Ray and what else its models do not need.

It is kept in the user's cache beside the engine environments, under a digest of its requirements:
CI builds it once per cache.
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
from tests.support import SUPPORT

_REQUIREMENTS = (SUPPORT / "lepton-requirements.txt",)
_BUILD = 900.0  # seconds


def ensure_lepton_package() -> Path:
    """The interpreter of the environment, built if it is not there yet."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    content = b"".join(path.read_bytes() for path in _REQUIREMENTS)
    digest = hashlib.sha256(content + version.encode()).hexdigest()[:12]
    folder = Layout.from_environment().cache / "tests" / f"lepton-{digest}"
    python = folder / "bin" / "python"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock"), timeout=_BUILD):
        if (folder / "complete").exists():
            return python
        shutil.rmtree(folder, ignore_errors=True)
        env = dict(os.environ)
        if links := find_links():
            env["UV_FIND_LINKS"] = links
        files = [word for path in _REQUIREMENTS for word in ("-r", str(path))]
        for words in (
            ["venv", "-p", sys.executable, str(folder)],
            ["pip", "install", "--python", str(folder), "--no-deps", *files],
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
