"""A program that works on a run until it is done or killed: `RUN_FOLDER SEED`."""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from evaluation_fakes import PROVENANCE, AddOne, FakeSampler, PickFirst, dataset, solve

from enginehouse.core.errors import BadRequestError
from enginehouse.evaluation import EvaluationSpec, TaskSpec, evaluate
from enginehouse.store.layout import Layout
from enginehouse.store.runs import open_run

SPEC = EvaluationSpec(
    tasks=(TaskSpec(name="addone"), TaskSpec(name="pick", limit=60)),
    samples=3,
    seed=5,
    temperature=0.7,
    concurrency=16,
)
TASKS = {"addone": (AddOne(), dataset(120)), "pick": (PickFirst("pick"), dataset(80))}


def reply(request):
    """Mostly right; the answer is a function of the request, as a seeded engine's is."""
    seed = request.parameters.seed or 0
    if seed % 41 == 0:
        return BadRequestError("refused", status=400)
    return "no idea" if seed % 7 == 0 else solve(request)


def main() -> None:
    """Evaluate, with answers taking up to 4 ms."""
    folder, seed = Path(sys.argv[1]), int(sys.argv[2])
    delays = random.Random(seed)
    sampler = FakeSampler(reply, pause=lambda: delays.random() * 0.004)
    run = open_run(Layout.from_environment(), str(folder))
    work = evaluate(SPEC, tasks=TASKS, sampler=sampler, provenance=PROVENANCE, run=run)
    asyncio.run(work)


if __name__ == "__main__":
    main()
