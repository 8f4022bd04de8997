"""What counts as a finished checkpoint: every way in which one can be half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.tiny_adapters import write_adapter
from tests.support.tiny_checkpoints import write_checkpoint

from enginehouse.core.errors import ConfigurationError
from enginehouse.provisioning.digests import weights_digest
from enginehouse.results.curve import Kind
from enginehouse.store.layout import Layout
from enginehouse.watch import checkpoints as finished_checkpoints
from enginehouse.watch.checkpoints import (
    MAY_CHANGE,
    Finished,
    Lookout,
    content_digest,
    step_of,
)


class Watched:
    """A folder that is looked at, and the time, which only moves when it is told to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = 100.0
        self.lookout = Lookout(folder, settle=5.0, clock=lambda: self.now)

    def later(self, seconds: float = 5.0) -> dict[str, Finished]:
        """The finished folders by name, so many seconds later."""
        self.now += seconds
        return {found.name: found for found in self.lookout.look().finished}

    def settled(self) -> dict[str, Finished]:
        """The finished folders by name, after two looks."""
        self.later()
        return self.later()

    def why(self) -> dict[str, str]:
        """Why each of the others is not finished."""
        return {waiting.name: waiting.why for waiting in self.lookout.look().waiting}


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    """An empty folder."""
    (tmp_path / "out").mkdir()
    return Watched(tmp_path / "out")


@pytest.fixture
def layout() -> Layout:
    """This test's own."""
    return Layout.from_environment()


def sharded(folder: Path, *, index: bool = True) -> Path:
    """A checkpoint of two files."""
    write_checkpoint(folder)
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for shard in shards:
        shutil.copy(folder / "model.safetensors", folder / shard)
    (folder / "model.safetensors").unlink()
    if index:
        weight_map = {"weight_map": dict(zip("ab", shards, strict=True))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(weight_map))
    return folder


def cut(path: Path, *, size: int) -> None:
    """Leave the first bytes of a file."""
    path.write_bytes(path.read_bytes()[:size])


def test_what_has_not_changed_between_two_looks_is_finished(watched: Watched):
    """Never at the first look; a change starts the wait anew."""
    folder = write_checkpoint(watched.folder / "checkpoint-10")
    write_adapter(watched.folder / "lora-20")
    (watched.folder / "runs").mkdir()
    (watched.folder / "runs" / "notes.json").write_text("{}")
    assert watched.later() == {}
    assert watched.why() == {"checkpoint-10": MAY_CHANGE, "lora-20": MAY_CHANGE}
    (folder / "optimizer.pt").write_bytes(b"1")
    assert set(watched.later()) == {"lora-20"}
    (folder / "optimizer.pt").write_bytes(b"12")
    assert set(watched.later()) == {"lora-20"}
    found = watched.later()
    kinds = {name: (one.kind, one.step) for name, one in found.items()}
    assert kinds == {"checkpoint-10": (Kind.CHECKPOINT, 10), "lora-20": (Kind.ADAPTER, 20)}
    assert watched.why() == {}
    assert set(watched.later(0.0)) == set(found)


def test_two_looks_in_quick_succession_are_one(watched: Watched):
    """However often one looks, the folder must have been the same for the whole time."""
    write_adapter(watched.folder / "a-1")
    for _ in range(40):
        assert watched.later(0.1) == {}
    assert set(watched.later(1.2)) == {"a-1"}


@pytest.mark.parametrize("size", [0, 7, 8, 60, -1])
def test_a_file_shorter_than_its_head_says_is_waited_for(watched: Watched, size: int):
    """However long it stays so; at its full length it is finished."""
    folder = write_checkpoint(watched.folder / "step-1")
    whole = (folder / "model.safetensors").read_bytes()
    cut(folder / "model.safetensors", size=size if size >= 0 else len(whole) - 1)
    assert watched.settled() == {}
    assert "model.safetensors is incomplete" in watched.why()["step-1"]
    (folder / "model.safetensors").write_bytes(whole)
    assert set(watched.settled()) == {"step-1"}


def test_a_file_that_was_only_made_room_for_is_waited_for(watched: Watched):
    """Its full length in zeros is no checkpoint."""
    folder = write_adapter(watched.folder / "a-1")
    size = (folder / "adapter_model.safetensors").stat().st_size
    (folder / "adapter_model.safetensors").write_bytes(bytes(size))
    assert watched.settled() == {}
    assert "it has no header yet" in watched.why()["a-1"]


def test_nonsense_is_finished(watched: Watched):
    """What is broken for good is not waited for: loading it says what is wrong."""
    folder = write_adapter(watched.folder / "a-1")
    length = (10).to_bytes(8, "little")
    (folder / "adapter_model.safetensors").write_bytes(length + b"not JSON.." + b"values")
    other = write_checkpoint(watched.folder / "b-2")
    (other / "model.safetensors").write_bytes(b"\xff" * 100)
    assert set(watched.settled()) == {"a-1", "b-2"}


@pytest.mark.parametrize(
    ("break_", "why"),
    [
        (lambda f: (f / "model-00002-of-00002.safetensors").unlink(), "model-00002-of-00002"),
        (lambda f: cut(f / "model.safetensors.index.json", size=20), "index.json is incomplete"),
        (lambda f: cut(f / "config.json", size=10), "config.json is incomplete"),
        (lambda f: (f / "config.json").unlink(), "it has no config.json yet"),
        (lambda f: (f / "model.safetensors.tmp").write_bytes(b""), "safetensors.tmp is being"),
        (lambda f: (f / ".model.safetensors.Xa1b2c").write_bytes(b""), "Xa1b2c is being written"),
        (lambda f: (f / "model-00002-of-00002.safetensors.part").touch(), ".part is being"),
    ],
)
def test_a_checkpoint_of_which_something_is_missing(
    watched: Watched, break_: Callable[[Path], object], why: str
):
    """It is waited for, and the reason names the file."""
    break_(sharded(watched.folder / "checkpoint-1"))
    assert watched.settled() == {}
    assert why in watched.why()["checkpoint-1"]


def test_shards_before_their_index(watched: Watched):
    """Savers write the index last: the shards' own names tell how many there are to be."""
    folder = sharded(watched.folder / "checkpoint-1", index=False)
    moved = (folder / "model-00001-of-00002.safetensors").rename(watched.folder / "aside")
    assert watched.settled() == {}
    assert "only 1 of 2 files of model are there" in watched.why()["checkpoint-1"]
    moved.rename(folder / "model-00001-of-00002.safetensors")
    assert set(watched.settled()) == {"checkpoint-1"}


@pytest.mark.parametrize(
    "name",
    [
        "tmp-checkpoint-5",
        "checkpoint-5.tmp",
        "checkpoint-5.partial",
        ".checkpoint-5",
        "checkpoint-5~",
        "step_5_incomplete",
        "checkpoint-5.tmp-3f2a",
        "checkpoint-5.TMP0",
    ],
)
def test_temporary_names_are_left_alone(watched: Watched, name: str):
    """Until the folder is renamed; then it must not change for a while, as any other."""
    folder = write_checkpoint(watched.folder / name)
    assert watched.settled() == {}
    assert watched.why() == {name: "its name is temporary"}
    folder.rename(watched.folder / "checkpoint-5")
    assert watched.later() == {}
    assert set(watched.later()) == {"checkpoint-5"}


@pytest.mark.parametrize("name", ["template-5", "contemporary", "partially-trained-2", "attempt-3"])
def test_names_that_only_look_temporary(watched: Watched, name: str):
    """A part of a word is no mark."""
    write_checkpoint(watched.folder / name)
    assert set(watched.settled()) == {name}


@pytest.mark.parametrize(
    ("write", "name", "why"),
    [
        (write_adapter, "adapter_model.safetensors", "it has no weights yet"),
        (write_checkpoint, "model.safetensors", "it has no weights yet"),
    ],
)
def test_a_configuration_without_weights(
    watched: Watched, write: Callable[[Path], Path], name: str, why: str
):
    """The weights come after it; an optimizer's state is none."""
    folder = write(watched.folder / "a-1")
    (folder / name).rename(folder / "optimizer.pt")
    assert watched.settled() == {}
    assert watched.why() == {"a-1": why}


def test_a_pickle_is_finished(watched: Watched, layout: Layout):
    """It is for loading to refuse it, with the reason."""
    folder = write_adapter(watched.folder / "a-1")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    found = watched.settled()["a-1"]
    assert len(content_digest(found, layout=layout)) == 64


def test_links_within_the_folder_are_no_checkpoints(watched: Watched, tmp_path: Path):
    """`latest` is there under its own name; a link to elsewhere is a checkpoint."""
    write_checkpoint(watched.folder / "checkpoint-1")
    write_checkpoint(tmp_path / "elsewhere")
    (watched.folder / "latest").symlink_to("checkpoint-1")
    (watched.folder / "gone").symlink_to("nowhere")
    (watched.folder / "step-7").symlink_to(tmp_path / "elsewhere")
    assert set(watched.settled()) == {"checkpoint-1", "step-7"}


def test_a_log_that_grows_does_not_matter(watched: Watched):
    """A training may write its log into the folder for as long as it goes on."""
    folder = write_checkpoint(watched.folder / "checkpoint-1")
    (folder / "train.log").write_text("1")
    watched.later()
    (folder / "train.log").write_text("12")
    (folder / "events.out.tfevents.1").write_text("1")
    assert set(watched.later()) == {"checkpoint-1"}


def test_what_is_removed_and_comes_again_settles_again(watched: Watched):
    """A rotation between two looks leaves nothing behind."""
    folder = write_checkpoint(watched.folder / "checkpoint-1")
    assert set(watched.settled()) == {"checkpoint-1"}
    shutil.rmtree(folder)
    assert watched.later() == {}
    write_checkpoint(folder)
    assert watched.later() == {}
    assert set(watched.later()) == {"checkpoint-1"}


def test_new_content_has_a_new_digest(watched: Watched, layout: Layout):
    """Of the same name and size, too; an adapter's configuration belongs to its content."""
    folder = write_checkpoint(watched.folder / "checkpoint-1", seed=1)
    adapter = write_adapter(watched.folder / "a-2", seed=1)
    found = watched.settled()
    before = {name: content_digest(one, layout=layout) for name, one in found.items()}
    files = (adapter / "adapter_config.json", adapter / "adapter_model.safetensors")
    assert before["a-2"] == weights_digest(files, layout=layout)
    write_checkpoint(folder, seed=2)
    write_adapter(adapter, seed=1, lora_alpha=3)
    assert watched.later() == {}
    found = watched.later()
    after = {name: content_digest(one, layout=layout) for name, one in found.items()}
    assert all(before[name] != after[name] for name in ("checkpoint-1", "a-2"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", '{"model_type": "other"}'),
        ("tokenizer.json", '{"version": "2"}'),
        ("chat_template.jinja", "{{ another }}"),
        ("tokenizer_config.json", '{"chat_template": "{{ another }}"}'),
    ],
)
def test_what_a_checkpoint_answers_with_is_its_content(
    watched: Watched, layout: Layout, name: str, text: str
):
    """The same weights with another of these are something else; optimizers and notes are not."""
    folder = write_checkpoint(watched.folder / "checkpoint-1")
    write_checkpoint(watched.folder / "checkpoint-2")
    found = watched.settled()
    one, two = (content_digest(each, layout=layout) for each in found.values())
    assert one == two
    (folder / "optimizer.pt").write_text("1")
    (folder / "trainer_state.json").write_text("{}")
    assert content_digest(watched.settled()["checkpoint-1"], layout=layout) == one
    (folder / name).write_text(text)
    assert content_digest(watched.settled()["checkpoint-1"], layout=layout) != one


@pytest.mark.parametrize("what", ["_lacking", "_json", "state_of"])
def test_what_cannot_be_read_is_said(watched: Watched, monkeypatch: pytest.MonkeyPatch, what: str):
    """Another user's files are waited for, with the reason; what is gone meanwhile is not there."""
    write_checkpoint(watched.folder / "checkpoint-1")
    errors = [PermissionError(13, "Permission denied"), FileNotFoundError(2, "gone")]

    def refuse(_: Path) -> None:
        raise errors[0]

    with monkeypatch.context() as patched:
        patched.setattr(finished_checkpoints, what, refuse)
        assert watched.settled() == {}
        assert watched.why() == {"checkpoint-1": "[Errno 13] Permission denied"}
        errors.pop(0)
        assert watched.settled() == {}
        assert watched.why() == {}
    assert set(watched.settled()) == {"checkpoint-1"}


def test_a_folder_that_is_not_there_yet_is_empty(tmp_path: Path):
    """A training that has not begun; a file in its place is an error."""
    watched = Watched(tmp_path / "out")
    assert watched.settled() == {}
    write_checkpoint(tmp_path / "elsewhere")
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").rename(tmp_path / "out" / "final")
    assert set(watched.settled()) == {"final"}
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="watched"):
        Watched(tmp_path / "file").later()


@pytest.mark.parametrize(
    ("name", "step"),
    [("checkpoint-500", 500), ("epoch-3-step-1500", 1500), ("iter_0000042", 42), ("final", None)],
)
def test_the_step_is_the_last_number_of_the_name(name: str, step: int | None):
    """None without one."""
    assert step_of(name) == step


def test_only_names_that_match(watched: Watched):
    """With patterns, other subfolders do not exist for it, finished or not."""
    for name in ("step_10", "iter_7", "Step_9", "checkpoint-8"):
        write_checkpoint(watched.folder / name)
    (watched.folder / "other").mkdir()
    (watched.folder / "other/config.json").write_text("{")
    watched.lookout = Lookout(
        watched.folder, settle=5.0, include=("iter_*", "step_*"), clock=lambda: watched.now
    )
    assert watched.settled().keys() == {"step_10", "iter_7"}
    assert watched.why() == {}


def test_a_ready_marker(watched: Watched):
    """A complete folder waits until one of the files is there, also in a subfolder of its own."""
    folder = write_checkpoint(watched.folder / "step_10")
    watched.lookout = Lookout(
        watched.folder,
        settle=5.0,
        ready_markers=("DONE", "meta/metadata.json"),
        clock=lambda: watched.now,
    )
    assert watched.settled() == {}
    assert "DONE or meta/metadata.json" in watched.why()["step_10"]
    (folder / "meta").mkdir()
    (folder / "meta/metadata.json").write_text("{}")
    assert watched.settled().keys() == {"step_10"}
    shutil.rmtree(folder / "meta")
    assert watched.settled() == {}
    (folder / "DONE").touch()
    assert watched.settled().keys() == {"step_10"}
