"""What kills llama-server and can be avoided."""

from __future__ import annotations

import re
from pathlib import Path

from enginehouse.engines.base import Quirk

AMX = Quirk(
    name="weight repacking with AMX",
    kills="a server on a processor with AMX, at its warm-up",
    avoided="--no-repack",
)


def has_amx(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor multiplies tiles (Intel's AMX)."""
    try:
        return re.search(r"^flags\s*:.*\bamx_", cpuinfo.read_text(), re.MULTILINE) is not None
    except OSError:
        return False
