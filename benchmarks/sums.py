"""The task that every evaluation here does: sums, each with one number as its answer."""

from __future__ import annotations

import json
from pathlib import Path

_TASK = """\
name: sums
data: sums.jsonl
prompt: "{{ question }} Answer with the number."
metric: number
answer: answer
max_tokens: 64
"""


def write_task(folder: Path, *, items: int) -> Path:
    """Write sums.jsonl and, for Enginehouse, sums.yaml; the latter's path."""
    with (folder / "sums.jsonl").open("w") as file:
        for n in range(items):
            item = {"question": f"How much is {n} + {n + 1}?", "answer": str(2 * n + 1)}
            file.write(json.dumps(item) + "\n")
    task = folder / "sums.yaml"
    task.write_text(_TASK)
    return task
