"""Disks that fill up: file systems in memory, of a few kilobytes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """A folder that becomes a disk of its own once it has a size."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def resize(self, size: int) -> None:
        """Mount it with so many KB, or make it larger; skips the test where that is not allowed."""
        how = "remount," if os.path.ismount(self.place) else ""
        options = ["-t", "tmpfs", "-o", f"{how}size={size}k"]
        mount = ["mount", *options, "tmpfs", str(self.place)]
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
        if mounted.returncode:
            pytest.skip(f"may not mount a small disk: {mounted.stderr.strip()}")


@contextmanager
def small_disk(place: Path) -> Iterator[SmallDisk]:
    """Make the folder `place`; a disk there is unmounted at the end of the block."""
    place.mkdir()
    try:
        yield SmallDisk(place)
    finally:
        if os.path.ismount(place):
            subprocess.run(["umount", "--lazy", str(place)], check=True)
