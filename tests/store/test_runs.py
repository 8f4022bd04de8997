from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from enginehouse.core.errors import ConfigurationError, RunLockedError, RunNotFoundError, StoreError
from enginehouse.store.layout import Layout
from enginehouse.store.runs import RunStatus, create_run, list_runs, open_run

HOLDER = (
    "import sys; from enginehouse.store.layout import Layout\n"
    "from enginehouse.store.runs import open_run\n"
    "with open_run(Layout.from_environment(), sys.argv[1]).hold():\n"
    "    print('held', flush=True); sys.stdin.read()\n"
)


@pytest.fixture
def layout() -> Layout:
    """The test's own folders."""
    return Layout.from_environment()


def make(layout: Layout, model: str = "smollm2", tasks: tuple[str, ...] = ("gsm8k",)):
    """A new run."""
    return create_run(layout, model=model, tasks=tasks, config="seed: 1\n", versions={"x": "1"})


@pytest.fixture
def holding_process(layout):
    """Starts processes that hold a run until their input ends."""
    children = []

    def start(run_id: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", HOLDER, run_id],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


def test_new_run_is_complete_on_disk(layout):
    """Id, configuration and facts are there, and it opens as the same."""
    run = make(layout, "HuggingFaceTB/SmolLM2-135M Instruct", ("gsm8k", "hellaswag", "ifeval"))
    pattern = r"\d{8}-\d{6}-smollm2-135m-instruct-gsm8k\+2-[0-9a-f]{4}"
    assert re.fullmatch(pattern, run.info.id)
    assert run.config_path.read_text() == "seed: 1\n"
    assert run.info.status is RunStatus.RUNNING
    assert open_run(layout, run.info.id).info == run.info


@pytest.mark.parametrize("model", ["/", "…", "../../x", "a" * 300, ".hidden"])
def test_any_model_name_makes_a_safe_folder(layout, model):
    """Odd names never leave the runs folder, hide the run, or exceed a file name's length."""
    run = make(layout, model)
    assert run.folder.parent == layout.runs
    assert run.folder.is_dir()
    assert [info.id for info in list_runs(layout)] == [run.info.id]


def test_hundred_runs_at_once_have_different_ids(layout):
    """The same second, model and task: ids still differ."""
    assert len({make(layout).info.id for _ in range(100)}) == 100


def test_open_by_prefix_and_by_path(layout, tmp_path):
    """A unique beginning or the folder's path will do."""
    run, _ = make(layout), make(layout)
    assert open_run(layout, run.info.id[:-1]).folder == run.folder
    assert open_run(layout, str(run.folder)).folder == run.folder
    moved = tmp_path / "elsewhere"
    run.folder.rename(moved)
    assert open_run(layout, str(moved)).info.id == run.info.id


def test_ambiguous_prefix_lists_the_matches(layout):
    """Two runs of one day: the day does not say which."""
    ids = {make(layout).info.id for _ in range(2)}
    with pytest.raises(RunNotFoundError) as caught:
        open_run(layout, "20")
    assert all(name in str(caught.value) for name in ids)


def test_unknown_run_names_the_nearest(layout):
    """A typing error is answered with what was meant; with no runs, with how to make one."""
    with pytest.raises(RunNotFoundError, match="enginehouse eval"):
        open_run(layout, "x")
    run = make(layout)
    with pytest.raises(RunNotFoundError, match=f"'{re.escape(run.info.id)}'"):
        open_run(layout, run.info.id[:-1] + "zz")
    with pytest.raises(RunNotFoundError):
        open_run(layout, "")


def test_update_is_atomic(layout, monkeypatch):
    """A full disk while run.json is replaced leaves the old one and no litter."""
    run = make(layout)
    before = sorted(p.name for p in run.folder.iterdir())

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StoreError, match="No space left"):
        run.finish(RunStatus.COMPLETE)
    monkeypatch.undo()
    assert open_run(layout, str(run.folder)).info.status is RunStatus.RUNNING
    assert sorted(p.name for p in run.folder.iterdir()) == before


def test_create_on_a_full_disk_shows_no_run(layout, monkeypatch):
    """A run folder appears whole or not at all."""

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StoreError, match="run folder"):
        make(layout)
    assert list_runs(layout) == []
    assert list(layout.runs.iterdir()) == []


def test_two_holders_exclude_each_other(layout, holding_process):
    """The second is told at once who holds the run and since when; later it may have it."""
    run = make(layout)
    child = holding_process(run.info.id)
    with (
        pytest.raises(RunLockedError, match=rf"process {child.pid} .*20\d\d-"),
        run.hold(),
    ):
        pass
    child.communicate("")
    with run.hold():
        assert run.is_held()
    assert not run.is_held()


def test_lock_of_a_killed_process_is_free(layout, holding_process):
    """Kill -9 frees the lock; until then the run shows as running, then as interrupted."""
    run = make(layout)
    child = holding_process(run.info.id)
    assert list_runs(layout)[0].status is RunStatus.RUNNING
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert list_runs(layout)[0].status is RunStatus.INTERRUPTED
    with run.hold():
        pass


def test_same_process_is_excluded_too(layout):
    """Two Run objects of one process exclude each other; one may hold twice."""
    run = make(layout)
    other = open_run(layout, run.info.id)
    with run.hold():
        with pytest.raises(RunLockedError, match=f"process {os.getpid()}"), other.hold():
            pass
        with run.hold():
            assert other.is_held()
        assert other.is_held()
    with other.hold():
        pass


def test_work_that_fails_is_recorded(layout):
    """Also inside other work on the same run; meanwhile it is held."""
    run = make(layout)
    run.finish(RunStatus.COMPLETE)
    with run.in_progress():
        assert run.is_held()
        assert run.info.status is RunStatus.RUNNING
        with pytest.raises(ZeroDivisionError), run.in_progress():
            raise ZeroDivisionError
    assert not run.is_held()
    assert open_run(layout, run.info.id).info.status is RunStatus.FAILED
    with pytest.raises(KeyboardInterrupt), run.in_progress():
        raise KeyboardInterrupt
    assert run.info.status is RunStatus.INTERRUPTED
    with run.in_progress():
        run.finish(RunStatus.COMPLETE)
    assert run.info.status is RunStatus.COMPLETE


@pytest.mark.parametrize("broken", ["{", "[" * 100_000], ids=["cut off", "nested"])
def test_list_is_newest_first_and_shows_broken_runs(layout, broken):
    """A run whose facts are unreadable is listed as such and does not hide the others."""
    runs = [make(layout) for _ in range(3)]
    runs[1].finish(RunStatus.COMPLETE)
    (runs[2].folder / "run.json").write_text(broken)
    (layout.runs / "stray-file").write_text("")
    listed = {info.id: info.status for info in list_runs(layout)}
    assert list(listed) == sorted(listed, reverse=True)
    assert listed == {
        runs[0].info.id: RunStatus.INTERRUPTED,
        runs[1].info.id: RunStatus.COMPLETE,
        runs[2].info.id: RunStatus.UNREADABLE,
    }
    with pytest.raises(StoreError, match=r"run\.json") as unreadable:
        open_run(layout, runs[2].info.id)
    assert "journal.jsonl" in str(unreadable.value.fix)  # the answers are not to be removed


def test_no_runs_at_all(layout):
    """A fresh machine has an empty list."""
    assert list_runs(layout) == []


def test_kinds_are_not_confused(layout):
    """An experiment is not an evaluation, and says which command it is for; old runs have none."""
    run = create_run(
        layout,
        model="base, lora",
        tasks=["red_black"],
        config="",
        versions={},
        kind="experiment",
        title="base against LoRA",
    )
    assert "-base-against-lora-red_black-" in run.info.id
    again = open_run(layout, run.info.id)
    again.require_kind("experiment", instead="show")
    with pytest.raises(ConfigurationError, match="experiment") as error:
        again.require_kind("evaluation", instead="play analyze")
    assert run.info.id in (error.value.fix or "")
    assert make(layout).info.kind == "evaluation"
