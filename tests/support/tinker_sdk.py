"""An environment with the real tinker SDK and tinker-cookbook, as a user of the service has it.

It is kept in the user's cache beside the engine environments, under a digest of its requirements:
CI builds it once per cache. tinker-cookbook 0.6.1 also asks for tml-renderers, which only its audio
recipes import and whose release it names is not on the registry; the list leaves it out.
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

_REQUIREMENTS = SUPPORT / "tinker-requirements.txt"
_BUILD = 1800.0  # seconds


def ensure_sdk() -> Path:
    """The interpreter of the environment, built if it is not there yet."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    digest = hashlib.sha256(_REQUIREMENTS.read_bytes() + version.encode()).hexdigest()[:12]
    folder = Layout.from_environment().cache / "tests" / f"tinker-sdk-{digest}"
    python = folder / "bin" / "python"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock"), timeout=_BUILD):
        if (folder / "complete").exists():
            return python
        shutil.rmtree(folder, ignore_errors=True)
        env, backend = dict(os.environ), ["--torch-backend", "cpu"]
        if links := find_links():
            env["UV_FIND_LINKS"], backend = links, []
        install = ["pip", "install", "--python", str(folder), "--no-deps", *backend]
        for words in (
            ["venv", "-p", sys.executable, str(folder)],
            [*install, "-r", str(_REQUIREMENTS)],
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
