"""Kill -9 at many moments, then resume: nothing is lost, nothing is doubled."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from tests.support import resumable_evaluation
from tests.support.evaluation_fakes import PROVENANCE, FakeSampler, new_run

from enginehouse.evaluation import evaluate, summarise
from enginehouse.evaluation.ledger import ASKED, MISSING, read_ledger
from enginehouse.evaluation.records import Record, SampleRecord, ScoreRecord
from enginehouse.store.journal import read_journal
from enginehouse.store.layout import Layout
from enginehouse.store.runs import Run, RunStatus, list_runs

PROGRAM = Path(resumable_evaluation.__file__)


def start(run: Run, seed: int, *death: str) -> subprocess.Popen[bytes]:
    """A process that works on the run."""
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(run.folder), str(seed), *death],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
    )


def size(run: Run) -> int:
    """Bytes in the journal."""
    return run.journal_path.stat().st_size if run.journal_path.exists() else 0


def grow(run: Run, child: subprocess.Popen[bytes], size_wanted: int) -> bool:
    """Wait until the journal has that size; false if the process ended before."""
    deadline = time.monotonic() + 60
    while size(run) < size_wanted:
        if child.poll() is not None:
            return False
        assert time.monotonic() < deadline, "the journal does not grow"
        os.sched_yield()
    return True


def keys(run: Run) -> tuple[Counter[tuple[str, str, int]], Counter[tuple[str, str, int]]]:
    """How often each sample was journaled, and scored."""
    samples: Counter[tuple[str, str, int]] = Counter()
    scores: Counter[tuple[str, str, int]] = Counter()
    for entry in read_journal(run.journal_path, Record):
        record = entry.record
        if isinstance(record, SampleRecord):
            samples[record.task, record.item, record.repeat] += 1
        elif isinstance(record, ScoreRecord):
            scores[record.task, record.item, record.repeat] += 1
    return samples, scores


async def check(run: Run, layout: Layout) -> None:
    """Every sample is journaled and scored once; the report is that of an undisturbed run."""
    samples, scores = keys(run)
    assert len(samples) == 120 * 3 + 60
    assert set(samples.values()) == {1}
    assert set(scores.values()) == {1}
    ledger = read_ledger(run.journal_path)
    assert all(t.counts[MISSING] == t.counts[ASKED] == 0 for t in ledger.tasks.values())
    undisturbed = new_run(layout, "addone", "pick")
    whole = await evaluate(
        resumable_evaluation.SPEC,
        tasks=resumable_evaluation.TASKS,
        sampler=FakeSampler(resumable_evaluation.reply),
        provenance=PROVENANCE,
        run=undisturbed,
    )
    resumed = summarise(run)
    assert resumed.complete
    assert resumed.tasks == whole.tasks
    assert resumed.tasks[0].outcomes["failed"] > 0
    saved = msgspec.json.decode(run.report_path.read_bytes(), type=type(resumed))
    assert saved == resumed


MANY = pytest.param(True, marks=pytest.mark.soak)


@pytest.mark.slow
@pytest.mark.parametrize("many", [False, MANY])
async def test_killed_at_its_own_writes(layout, *, many):
    """Killed before, after and in the middle of seeded writes, from the very first on."""
    moments = random.Random(20)
    writes, seeded = ((1, 2, 3, 4, 5), 8) if many else ((2,), 1)
    deaths = [(n, how) for n in writes for how in ("before", "half", "after")]
    deaths += [(moments.randint(6, 120), moments.choice(["half", "after"])) for _ in range(seeded)]
    run = new_run(layout, "addone", "pick")
    for seed, (write, how) in enumerate(deaths):
        child = start(run, seed, str(write), how)
        _, errors = child.communicate()
        assert child.returncode == -signal.SIGKILL, errors.decode()
        assert list_runs(layout)[0].status is RunStatus.INTERRUPTED
    child = start(run, 99)
    _, errors = child.communicate()
    assert child.returncode == 0, errors.decode()
    await check(run, layout)


@pytest.mark.slow
@pytest.mark.parametrize("many", [False, MANY])
async def test_killed_from_outside(layout, *, many):
    """Killed whenever the journal has grown by some amount, starting up and ending included."""
    moments = random.Random(21)
    growth = [0, 1, 300, 9_000, 60_000] if many else [1, 60_000]
    run, killed = new_run(layout, "addone", "pick"), 0
    while True:
        child = start(run, killed)
        if not grow(run, child, size(run) + moments.choice(growth)):
            break
        child.kill()
        child.communicate()
        killed += 1
        # complete: killed while it was exiting after its last write
        assert list_runs(layout)[0].status in (RunStatus.INTERRUPTED, RunStatus.COMPLETE)
    _, errors = child.communicate()
    assert child.returncode == 0, errors.decode()
    await check(run, layout)


@pytest.mark.slow
async def test_every_cut_of_the_journals_end_resumes(layout):
    """Whatever the last bytes lack, a resume asks or scores only that and reports the same."""
    spec, tasks = resumable_evaluation.SPEC, resumable_evaluation.TASKS
    run = new_run(layout, "addone", "pick")

    async def finish() -> tuple[object, int]:
        sampler = FakeSampler(resumable_evaluation.reply)
        report = await evaluate(spec, tasks=tasks, sampler=sampler, provenance=PROVENANCE, run=run)
        return report.tasks, len(sampler.requests)

    whole, _ = await finish()
    content = run.journal_path.read_bytes()
    lines = content.splitlines(keepends=True)
    score, sample = len(lines[-1]), len(lines[-2])
    cuts = [*range(1, score + 1, 7), *range(score, score + sample + 1, 31), score + sample]
    for cut in cuts:
        run.journal_path.write_bytes(content[: len(content) - cut])
        again, asked = await finish()
        assert again == whole
        assert asked == (0 if cut <= score else 2)  # the last sample is a choice between two
