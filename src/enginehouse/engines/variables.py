"""The environment variables of a server's process."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

_ALWAYS = "PATH|HOME|LD_LIBRARY_PATH|(https?|no)_proxy|(HTTPS?|NO)_PROXY"


def inherited_variables(*patterns: str, without: Collection[str] = ()) -> dict[str, str]:
    """Our own variables that an engine may see: the usual ones, and those of `patterns`."""
    wanted = re.compile("|".join([_ALWAYS, *patterns]))
    return {
        name: value
        for name, value in os.environ.items()
        if wanted.fullmatch(name) and name not in without
    }


def path_with(program: Path, path: str | None) -> str:
    """PATH with the folder of `program` in front, so that an engine finds its own tools."""
    return f"{program.parent}{os.pathsep}{path or os.defpath}"
