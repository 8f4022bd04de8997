"""States of models on disk: whole or not there."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from enginehouse.core.errors import StoreError
from enginehouse.tinker.data import LoraSpec
from enginehouse.tinker.model_states import Failure, ModelState, ModelStates


def a_state(applied: int, *, model_id: str = "ses-1:train:0") -> ModelState:
    """The state after the job `applied`, with half a batch that has failed."""
    return ModelState(
        model_id=model_id,
        user="ada",
        spec=LoraSpec(rank=4, seed=1),
        applied=applied,
        pending=2,
        broken=Failure(message="NaN", category="user"),
    )


async def save(states: ModelStates, state: ModelState, content: str = "weights") -> None:
    """Save a state with an adapter of one file."""
    async with states.saving(state) as folder:
        assert not folder.exists()
        folder.mkdir()
        (folder / "adapter.txt").write_text(content)


async def fail_to_save(states: ModelStates, state: ModelState) -> None:
    """Find the disk full in the middle of it."""
    async with states.saving(state) as folder:
        folder.mkdir()
        raise OSError("the disk is full")


async def test_a_state_comes_back_as_it_was_saved(tmp_path: Path):
    """With all that has to be known beside the adapter."""
    states = ModelStates(tmp_path)
    assert states.newest("ses-1:train:0") is None
    await save(states, a_state(3), "three")
    state = ModelStates(tmp_path).newest("ses-1:train:0")
    assert state == a_state(3)
    assert (states.adapter(state) / "adapter.txt").read_text() == "three"
    assert states.model_ids() == ["ses-1:train:0"]


async def test_only_the_newest_state_is_kept(tmp_path: Path):
    """By number and not by name."""
    states = ModelStates(tmp_path)
    for applied in (9, 10):
        await save(states, a_state(applied))
    assert states.newest("ses-1:train:0") == a_state(10)
    assert [path.name for path in (tmp_path / "ses-1:train:0").iterdir()] == ["state-10"]


async def test_a_save_that_fails_leaves_the_older_state(tmp_path: Path):
    """And nothing of itself."""
    states = ModelStates(tmp_path)
    await save(states, a_state(3))
    with pytest.raises(OSError, match="full"):
        await fail_to_save(states, a_state(6))
    assert states.newest("ses-1:train:0") == a_state(3)
    assert [path.name for path in (tmp_path / "ses-1:train:0").iterdir()] == ["state-3"]


async def test_a_save_that_is_cancelled_at_its_end_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The thread that completes it is not disturbed: a state never lacks a file."""
    states = ModelStates(tmp_path)
    begun, go = threading.Event(), threading.Event()
    replace = Path.rename

    def rename(path: Path, target: Path) -> Path:
        begun.set()
        go.wait(10)
        return replace(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    saving = asyncio.create_task(save(states, a_state(3)))
    await asyncio.to_thread(begun.wait, 10)
    saving.cancel()
    asyncio.get_running_loop().call_later(0.05, go.set)
    with pytest.raises(asyncio.CancelledError):
        await saving
    state = states.newest("ses-1:train:0")
    assert state == a_state(3)
    assert (states.adapter(state) / "adapter.txt").read_text() == "weights"


async def test_what_a_kill_left_half_written_is_not_a_state(tmp_path: Path):
    """It is removed by the next save."""
    states = ModelStates(tmp_path)
    await save(states, a_state(3))
    partial = tmp_path / "ses-1:train:0" / "state-6.partial"
    (partial / "adapter").mkdir(parents=True)
    assert states.newest("ses-1:train:0") == a_state(3)
    await save(states, a_state(6))
    assert states.newest("ses-1:train:0") == a_state(6)
    assert not partial.exists()


async def test_a_damaged_state_is_reported(tmp_path: Path):
    """With the file's name, and what to do."""
    states = ModelStates(tmp_path)
    await save(states, a_state(3))
    file = tmp_path / "ses-1:train:0" / "state-3" / "state.json"
    file.write_text("{}")
    with pytest.raises(StoreError, match=r"state\.json"):
        states.newest("ses-1:train:0")


async def test_a_model_that_is_removed_leaves_nothing(tmp_path: Path):
    """Twice is no error."""
    states = ModelStates(tmp_path)
    await save(states, a_state(3))
    for _ in range(2):
        states.remove("ses-1:train:0")
    assert states.model_ids() == []


async def test_no_name_leads_out_of_the_folder(tmp_path: Path):
    """Whatever a model is called."""
    states = ModelStates(tmp_path / "models")
    await save(states, a_state(3, model_id="../other:train:0"))
    assert states.newest("../other:train:0") is not None
    assert os.listdir(tmp_path) == ["models"]  # noqa: PTH208 (in a coroutine)
