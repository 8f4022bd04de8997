"""How long `make demo` takes, first and second time, and how many answers it cuts off.

python benchmarks/demo.py: with an engine home of its own, so nothing but uv's cache is warm.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Run the demo twice and print seconds and the truncated share of the written answers."""
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"ENGINEHOUSE_HOME": home}
        for turn in ("first", "second"):
            began = time.monotonic()
            subprocess.run(
                ["make", "--silent", "demo"],  # noqa: S607 (the user's make)
                cwd=ROOT,
                env=environment,
                check=True,
                capture_output=True,
            )
            print(f"{turn} run: {time.monotonic() - began:.0f} s")
        reports = sorted(Path(home, "state", "runs").glob("*/report.json"))
        for path in reports:
            tasks = json.loads(path.read_text())["tasks"]
            written = [task["outcomes"] for task in tasks if task["task"] != "hellaswag"]
            cut = sum(outcomes.get("truncated", 0) for outcomes in written)
            print(f"truncated: {cut} of {sum(sum(o.values()) for o in written)} written answers")


if __name__ == "__main__":
    main()
