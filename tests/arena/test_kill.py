"""Kill -9 at many moments, then resume: nothing is lost, nothing is asked twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from tests.support import resumable_experiment
from tests.support.arena_fakes import calls, matches, new_run, records
from tests.support.resumable_experiment import SPEC, models

from enginehouse.arena.experiment import play_experiment
from enginehouse.arena.records import MatchRecord
from enginehouse.games.registry import make_game
from enginehouse.store.runs import Run, RunStatus

PROGRAM = Path(resumable_experiment.__file__)
GAME = make_game(SPEC.game, SPEC.settings, seats=SPEC.seats)


def start(run: Run, seed: int, *death: str) -> subprocess.CompletedProcess[bytes]:
    """Work on the run in a process of its own, until it ends or dies."""
    return subprocess.run(
        [sys.executable, str(PROGRAM), str(run.folder), str(seed), *death],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        check=False,
    )


def outcome(run: Run) -> list[bytes]:
    """Every match without its times and its tokens, which a failed call may leave different."""
    return [
        msgspec.json.encode(
            {"turns": m.turns, "seed": m.seed, "failure": m.failure and m.failure.kind}
        )
        for m in matches(run)
    ]


async def check(run: Run, folder: Path) -> None:
    """Every call is journaled once, and the matches are those of an undisturbed run."""
    whole = new_run(folder, "whole")
    await play_experiment(SPEC, game=GAME, models=models(0), run=whole)
    assert outcome(run) == outcome(whole)
    assert any(m.failure for m in matches(whole))
    answered = Counter(c.key for c in calls(run) if c.response)
    assert set(answered.values()) == {1}
    ended = Counter(r.match for r in records(run) if isinstance(r, MatchRecord))
    assert set(ended.values()) == {1}
    assert len(ended) == 16


@pytest.mark.slow
@pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.soak)])
async def test_killed_at_its_own_writes(tmp_path, *, many):
    """Killed before, after and in the middle of seeded writes, from the very first on."""
    moments = random.Random(20)
    writes, seeded = ((1, 2, 3, 4, 5), 8) if many else ((2,), 1)
    deaths = [(n, how) for n in writes for how in ("before", "half", "after")]
    deaths += [(moments.randint(6, 30), moments.choice(["half", "after"])) for _ in range(seeded)]
    run = new_run(tmp_path)
    for seed, (write, how) in enumerate(deaths):
        child = start(run, seed, str(write), how)
        assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    child = start(run, 99)
    assert child.returncode == 0, child.stderr.decode()
    await check(run, tmp_path)


@pytest.mark.slow
async def test_every_cut_of_the_journals_end_resumes(tmp_path):
    """Whatever the last bytes lack, a resume asks only that, and the matches are the same."""
    run = new_run(tmp_path)
    await play_experiment(SPEC, game=GAME, models=models(0), run=run)
    content, whole = run.journal_path.read_bytes(), outcome(run)
    cuts = random.Random(3).sample(range(len(content)), 25)
    for cut in (0, *cuts):
        run.journal_path.write_bytes(content[:cut])
        known = Counter(c.key for c in calls(run) if c.response)
        fakes = models(1)
        await play_experiment(SPEC, game=GAME, models=fakes, run=run)
        assert run.info.status is RunStatus.COMPLETE
        assert outcome(run) == whole
        asked = Counter(c.key for c in calls(run) if c.response)
        assert set(asked.values()) == {1}
        assert set(known) <= set(asked)
