"""Room on the disk: what checkpoints must leave free, so that work goes on for everybody."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final, Literal

_KEPT: Final = {"work": 1 << 30, "journal": 1 << 28}  # bytes, on a large disk
_PARTS: Final = {"work": 20, "journal": 80}  # of a small disk, the 20th and the 80th part


def kept_free(folder: Path, purpose: Literal["work", "journal"]) -> int:
    """The bytes that are kept free on the folder's disk.

    Checkpoints leave room for "work": the bodies, answers and records of all users. Large bodies
    leave room for the "journal" and the records.
    """
    return min(_KEPT[purpose], shutil.disk_usage(folder).total // _PARTS[purpose])


def is_scarce(folder: Path, purpose: Literal["work", "journal"]) -> bool:
    """Whether less is free than is kept for `purpose`."""
    return shutil.disk_usage(folder).free < kept_free(folder, purpose)
