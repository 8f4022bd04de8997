"""A program that works on a run until it is done or killed: `RUN_FOLDER SEED [WRITE HOW]`."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

from enginehouse.core.errors import BadRequestError
from enginehouse.evaluation import EvaluationSpec, TaskSpec, evaluate, plan_tasks
from enginehouse.store import journal as journal_module
from enginehouse.store.layout import Layout
from enginehouse.store.runs import open_run
from tests.support.evaluation_fakes import (
    PROVENANCE,
    AddOne,
    FakeSampler,
    PickFirst,
    dataset,
    solve,
)

SPEC = EvaluationSpec(
    tasks=(TaskSpec(name="addone"), TaskSpec(name="pick", limit=60)),
    samples=3,
    seed=5,
    temperature=0.7,
    concurrency=16,
)
TASKS = plan_tasks(
    SPEC, {"addone": (AddOne(), dataset(120)), "pick": (PickFirst("pick"), dataset(80))}
)


def reply(request):
    """Mostly right; the answer is a function of the request, as a seeded engine's is."""
    seed = request.parameters.seed or 0
    if seed % 41 == 0:
        return BadRequestError("refused", status=400)
    return "no idea" if seed % 7 == 0 else solve(request)


def die_at(write: int, how: str) -> None:
    """Kill this process at its n-th journal write: before it, after it, or in the middle."""
    real, count = os.write, 0

    def counted(file: int, data: bytes) -> int:
        nonlocal count
        count += 1
        if count == write and how != "after":
            real(file, data[: len(data) // 2] if how == "half" else b"")
            os.kill(os.getpid(), signal.SIGKILL)
        written = real(file, data)
        if count == write:
            os.kill(os.getpid(), signal.SIGKILL)
        return written

    journal_module.os.write = counted  # type: ignore[assignment]


def main() -> None:
    """Evaluate, with answers taking up to 4 ms, dying when told to."""
    folder, seed = Path(sys.argv[1]), int(sys.argv[2])
    if len(sys.argv) > 3:
        die_at(int(sys.argv[3]), sys.argv[4])
    delays = random.Random(seed)
    sampler = FakeSampler(reply, pause=lambda: delays.random() * 0.004)
    run = open_run(Layout.from_environment(), str(folder))
    work = evaluate(SPEC, tasks=TASKS, sampler=sampler, provenance=PROVENANCE, run=run)
    asyncio.run(work)


if __name__ == "__main__":
    main()
