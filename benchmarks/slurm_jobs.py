"""What many jobs cost on Slurm: PYTHONPATH=. python benchmarks/slurm_jobs.py.

One launch file is read and planned once. Then as many jobs of it are recorded and submitted, as
`enginehouse launch run` does it, a few at a time, and their status is asked for, as `enginehouse
launch status` does it. The cluster is one of the tests' own, without accounting. Its nodes are this
machine, so jobs are held: what is measured is submitting and listing, not running them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml
from interleaved import HEAD, machine, mean, row, say
from tests.support.slurm_cluster import slurm_cluster

from enginehouse.jobs.launch import launch, refresh
from enginehouse.jobs.launch_file import read_launch
from enginehouse.jobs.plan import plan_launch
from enginehouse.jobs.records import JobRecord
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout

_BUDGET = 10.0  # seconds for both


def main(arguments: Sequence[str]) -> None:
    """Measure and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=200, help="per round")
    parser.add_argument("--at-once", type=int, default=4, help="submissions in flight")
    asked = parser.parse_args(arguments)
    say(machine())
    submitted, listed = [], []
    with slurm_cluster() as cluster, tempfile.TemporaryDirectory() as folder:
        os.environ |= cluster.environment | {"ENGINEHOUSE_HOME": folder}
        launch_file = _launch_file(Path(folder))
        for number in range(asked.rounds):
            seconds = asyncio.run(_round(launch_file, jobs=asked.jobs, at_once=asked.at_once))
            submitted.append(seconds[0])
            listed.append(seconds[1])
            say(f"round {number + 1}: submitted {seconds[0]:.1f} s, listed {seconds[1]:.2f} s")
            cluster.clear()
    print(HEAD)
    print(row(f"{asked.jobs} jobs submitted, s", mean(submitted)))
    print(row(f"their status listed, s (both: at most {_BUDGET:.0f})", mean(listed)))


def _launch_file(folder: Path) -> Path:
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    values = {
        "execution": {
            "type": "slurm",
            "output_dir": str(folder / "jobs"),
            "gpus_per_node": 0,
            "sbatch_extra_flags": {"hold": True},
        },
        "deployment": {"type": "vllm", "checkpoint_path": str(model)},
        "evaluation": {"tasks": [{"name": "ifeval"}]},
    }
    path = folder / "launch.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


async def _round(launch_file: Path, *, jobs: int, at_once: int) -> tuple[float, float]:
    """The seconds to submit, and to list the status of, that many jobs."""
    context, places = Context(layout=Layout.from_environment()), asyncio.Semaphore(at_once)
    plan = plan_launch(read_launch(launch_file))

    async def one() -> JobRecord:
        number = secrets.token_hex(8)
        job = replace(plan.job, id=number, folder=plan.job.folder.parent / number)
        async with places:
            return await launch(replace(plan, job=job), context)

    began = time.perf_counter()
    records = await asyncio.gather(*(one() for _ in range(jobs)))
    between = time.perf_counter()
    refreshed = await refresh(records, context)
    end = time.perf_counter()
    say(str(Counter(record.status.state.value for record in refreshed)))
    return between - began, end - between


if __name__ == "__main__":
    main(sys.argv[1:])
