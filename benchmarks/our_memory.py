"""`enginehouse WORDS`, then its peak resident memory in MB (10⁶ bytes): our_memory.py WORDS.

Asked from inside, for what the kernel tells a parent includes the parent's own size at the fork.
"""

from __future__ import annotations

import resource
from pathlib import Path

from enginehouse.__main__ import main


def peak() -> float:
    """The most that this program has had."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(text for text in status.read_text().splitlines() if text.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS counts bytes


if __name__ == "__main__":
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
    print(peak())
