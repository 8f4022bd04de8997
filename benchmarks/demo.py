"""How long `make demo` takes, first and second time, and how many answers it cuts off.

python benchmarks/demo.py: with an engine home of its own, so nothing but uv's cache is warm. Where
other programs share the machine, the CPU time, divided by the cores, tells more than the seconds.
The time to the first answered request is what one waits for until the progress line moves.
"""

from __future__ import annotations

import json
import os
import re
import resource
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
            began, used = time.monotonic(), _cpu_seconds()
            done = subprocess.run(
                ["make", "--silent", "demo"],  # noqa: S607 (the user's make)
                cwd=ROOT,
                env=environment,
                check=True,
                capture_output=True,
                text=True,
            )
            seconds, cpu = time.monotonic() - began, _cpu_seconds() - used
            print(f"{turn} run: {seconds:.0f} s, {cpu:.0f} s of CPU time")
            print(f"first answered request seen after {_first_answer(done.stderr)} of asking")
        reports = sorted(Path(home, "state", "runs").glob("*/report.json"))
        for path in reports:
            tasks = json.loads(path.read_text())["tasks"]
            written = [task["outcomes"] for task in tasks if task["task"] != "hellaswag"]
            cut = sum(outcomes.get("truncated", 0) for outcomes in written)
            print(f"truncated: {cut} of {sum(sum(o.values()) for o in written)} written answers")


def _cpu_seconds() -> float:
    """What our children, theirs included, have used until now, as far as they have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _first_answer(said: str) -> str:
    """The elapsed time in the first progress line that counts an answered request."""
    lines = re.findall(r"samples, ([\d,]+) requests, .*?, (\d+:\d\d),", said)
    return next((elapsed for requests, elapsed in lines if requests != "0"), "no time")


if __name__ == "__main__":
    main()
