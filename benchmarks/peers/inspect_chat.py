"""inspect_ai's eval on a JSONL file: inspect_chat.py URL ITEMS COUNT CONCURRENCY.

Prints the samples per second of the whole eval call, imports excluded.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

os.environ["OPENAI_API_KEY"] = "none"
os.environ["INSPECT_LOG_LEVEL"] = "error"

from inspect_ai import Task, eval  # noqa: A004 (its name)
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.scorer import match


def main(url: str, items: str, count: int, concurrency: int) -> None:
    """Evaluate once and print the rate."""
    with Path(items).open() as lines, tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        rows = [json.loads(line) for line in islice(lines, count)]
        samples = [
            Sample(input=f"{row['question']} Answer with the number.", target=row["answer"])
            for row in rows
        ]
        model = get_model(
            "openai/fixed",
            base_url=f"{url}/v1",
            responses_api=False,
            config=GenerateConfig(max_tokens=64, temperature=0.0, max_connections=concurrency),
        )
        logs = eval(
            Task(dataset=MemoryDataset(samples), scorer=match(numeric=True)),
            model=model,
            max_samples=concurrency,
            display="none",
            log_dir=folder,
        )
        seconds = time.perf_counter() - began
    if logs[0].status != "success" or logs[0].results.completed_samples != count:
        sys.exit(f"it ended with {logs[0].status}: {logs[0].error}")
    print(count / seconds)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
