"""A whole evaluation by Enginehouse: our_evaluation.py URL TASK SAMPLES CONCURRENCY.

Data, run folder, journal, scoring and report included, imports excluded. ENGINEHOUSE_HOME says
where the run goes. Prints samples per second and CPU seconds per sample.
"""

from __future__ import annotations

import sys
import time

import uvloop

from enginehouse.commands.evaluate import evaluate


def main(url: str, task: str, samples: int, concurrency: int) -> None:
    """Evaluate once."""
    began, cpu = time.perf_counter(), time.process_time()
    report = uvloop.run(evaluate(tasks=[task], url=url, limit=samples, concurrency=concurrency))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    outcomes = report.tasks[0].outcomes
    if outcomes["correct"] + outcomes["wrong"] != samples:
        sys.exit(f"not every sample was answered: {outcomes}")
    print(samples / seconds, cpu / samples)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
