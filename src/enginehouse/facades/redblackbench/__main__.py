"""`python -m enginehouse.facades.redblackbench FILE.yaml`: what `enginehouse play FILE.yaml` does.

The process becomes that command, so that signals, output and exit code are its own.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the experiment of the file that the arguments name."""
    words = [sys.executable, "-m", "enginehouse", "play", *(sys.argv[1:] or ["--help"])]
    os.execv(sys.executable, words)  # noqa: S606 - there is no shell


if __name__ == "__main__":
    main()
