"""What is saved is there whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.stand_in import Model, Tokenizer, Torch

from enginehouse.core.errors import ModelError, StoreError
from enginehouse.training.saving import is_adapted, save_adapter, save_checkpoint, save_whole

KILLED = """
import os, signal, sys
from pathlib import Path
from enginehouse.training.saving import save_whole

def write(folder):
    (folder / "half").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)

save_whole(write, folder=Path(sys.argv[1]))
"""


def names(folder: Path) -> list[str]:
    """Everything below it, hidden or not."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_checkpoint_is_model_and_tokenizer(torch: Torch, tmp_path: Path):
    """As both save themselves, and nothing besides."""
    save_checkpoint(Model(torch), tokenizer=Tokenizer(), folder=tmp_path / "deep" / "step")
    expected = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert names(tmp_path / "deep") == ["step", *(f"step/{name}" for name in expected)]


def test_without_a_tokenizer_nothing_is_saved(torch: Torch, tmp_path: Path):
    """No engine could serve it."""
    with pytest.raises(ModelError, match="tokenizer"):
        save_checkpoint(Model(torch), tokenizer=None, folder=tmp_path / "step")
    assert names(tmp_path) == []


def test_the_name_comes_last(tmp_path: Path):
    """While it is written there is nothing under the name, and then everything is on the disk."""
    synced: list[str] = []
    real = os.fsync

    def note(file: int) -> None:
        synced.append(Path(f"/proc/self/fd/{file}").readlink().name)
        real(file)

    def write(folder: Path) -> None:
        assert not (tmp_path / "step").exists()
        assert folder.name.startswith(".")
        (folder / "inner").mkdir()
        (folder / "inner" / "a").write_text("a")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", note)
        save_whole(write, folder=tmp_path / "step")
    assert names(tmp_path) == ["step", "step/inner", "step/inner/a"]
    assert synced[:2] == ["a", "inner"]
    assert synced[-1] == tmp_path.name


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("no")])
def test_a_failure_leaves_what_was_there(tmp_path: Path, error: Exception):
    """The older checkpoint is whole, and nothing half-written stays beside it."""
    save_whole(lambda folder: (folder / "old").write_text("old"), folder=tmp_path / "step")

    def write(folder: Path) -> None:
        (folder / "new").write_text("new")
        raise error

    with pytest.raises((StoreError, ValueError), match=r"No space left|no"):
        save_whole(write, folder=tmp_path / "step")
    assert names(tmp_path) == ["step", "step/old"]


def test_the_same_step_again(tmp_path: Path):
    """The new one takes the place of the old one."""
    for name in ("old", "new"):
        save_whole(lambda folder, name=name: (folder / name).touch(), folder=tmp_path / "step")
    assert names(tmp_path) == ["step", "step/new"]


@pytest.mark.slow
def test_killed_while_saving(tmp_path: Path):
    """Kill -9 leaves nothing under the name, only something hidden."""
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "step"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "step").exists()
    assert all(name.startswith(".step") for name in names(tmp_path))


def test_an_adapter_is_saved_as_peft_saves_it(torch: Torch, tmp_path: Path):
    """A PEFT model writes its own folder; an ordinary model is none."""
    model = Model(torch)
    assert not is_adapted(model)
    model.peft_config, model.merge_and_unload = {}, None
    assert is_adapted(model)
    save_adapter(model, folder=tmp_path / "step")
    assert names(tmp_path) == ["step", "step/config.json", "step/model.safetensors"]
