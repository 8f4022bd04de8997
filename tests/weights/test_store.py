from __future__ import annotations

import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tests.support.tiny_adapters import BASE, write_adapter

from enginehouse.core.errors import AdapterError
from enginehouse.weights import store as module
from enginehouse.weights.store import AdapterStore, UncopiedAdapters

FILES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture
def store(layout) -> AdapterStore:
    """An empty store."""
    return AdapterStore(layout)


def contents(folder) -> list[bytes]:
    """Both files' bytes."""
    return [(folder / name).read_bytes() for name in FILES]


def test_an_adapter_lies_under_its_digest(store, layout, tmp_path):
    """A copy of both files and nothing else, under what a shell would compute."""
    folder = write_adapter(tmp_path / "a")
    (folder / "optimizer.pt").write_bytes(b"not ours")
    stored = store.add(folder, base=BASE)
    command = f"sha256sum {' '.join(FILES)} | sha256sum"
    shell = subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, check=True)
    assert stored.digest == shell.stdout.split()[0].decode()
    assert stored.path == layout.adapters / stored.digest
    assert sorted(path.name for path in stored.path.iterdir()) == sorted(FILES)
    assert contents(stored.path) == contents(folder)
    assert stored.info.rank == 4


def test_it_outlives_its_source(store, tmp_path):
    """Overwriting the folder, or removing it, changes nothing in the store."""
    folder = write_adapter(tmp_path / "a")
    first = store.add(folder)
    before = contents(first.path)
    write_adapter(folder, seed=1)
    second = store.add(folder)
    shutil.rmtree(folder)
    assert second.digest != first.digest
    assert contents(first.path) == before != contents(second.path)


def test_the_configuration_is_content_too(store, tmp_path):
    """Another alpha is another adapter."""
    one = store.add(write_adapter(tmp_path / "a", lora_alpha=8))
    other = store.add(write_adapter(tmp_path / "b", lora_alpha=16))
    assert one.digest != other.digest


def test_it_is_read_only(store, tmp_path):
    """Nobody changes it by accident."""
    stored = store.add(write_adapter(tmp_path / "a"))
    assert all((stored.path / name).stat().st_mode & 0o222 == 0 for name in FILES)


def test_the_same_content_twice(store, tmp_path):
    """From two folders: one place, whose files stay the very same ones under a server."""
    first = store.add(write_adapter(tmp_path / "a"))
    before = (first.path / FILES[1]).stat().st_ino
    again = store.add(write_adapter(tmp_path / "b"))
    assert again == first
    assert (again.path / FILES[1]).stat().st_ino == before


def test_a_place_that_was_left_half_empty(store, tmp_path):
    """A machine that lost power: the copy is put there again."""
    folder = write_adapter(tmp_path / "a")
    first = store.add(folder)
    (first.path / FILES[1]).chmod(0o644)
    (first.path / FILES[1]).write_bytes(b"")
    assert contents(store.add(folder).path) == contents(folder)


def test_many_at_once(store, layout, tmp_path):
    """Eight threads, two contents, four folders: two places, both whole, nothing left over."""
    folders = [write_adapter(tmp_path / str(n), seed=n % 2) for n in range(4)]
    with ThreadPoolExecutor(8) as threads:
        stored = list(threads.map(lambda n: store.add(folders[n % 4]), range(16)))
    assert {one.digest for one in stored} == {stored[0].digest, stored[1].digest}
    for number, one in enumerate(stored):
        assert contents(one.path) == contents(folders[number % 4])
    assert {path.name for path in layout.adapters.iterdir() if path.name[0] != "."} == {
        one.digest for one in stored
    }
    assert not list((layout.adapters / ".building").iterdir())


class TestRefused:
    """What is refused leaves nothing behind, and the message names the folder that was given."""

    def refusal(self, store, layout, folder, **options: object) -> str:
        """The message."""
        with pytest.raises(AdapterError) as caught:
            store.add(folder, **options)
        assert str(folder) in caught.value.message
        assert ".building" not in str(caught.value)
        assert [path.name for path in layout.adapters.iterdir() if path.name[0] != "."] == []
        assert not list((layout.adapters / ".building").iterdir())
        return str(caught.value)

    def test_no_folder(self, store, layout, tmp_path):
        """There is nothing to copy."""
        assert "no such folder" in self.refusal(store, layout, tmp_path / "nowhere")

    def test_a_pickle(self, store, layout, tmp_path):
        """Not even copied."""
        folder = write_adapter(tmp_path / "a")
        (folder / FILES[1]).rename(folder / "adapter_model.bin")
        assert "a pickle" in self.refusal(store, layout, folder)

    def test_another_base_and_a_rank_too_large(self, store, layout, tmp_path):
        """The checks know what the server is."""
        folder = write_adapter(tmp_path / "a")
        base = {name: (2,) for name in BASE if ".layers.1." not in name}
        assert "does not have" in self.refusal(store, layout, folder, base=base)
        assert "rank 4" in self.refusal(store, layout, folder, max_rank=2)

    def test_nan(self, store, layout, tmp_path):
        """The values are looked at."""

        def spoil(made):
            next(iter(made.values()))[0, 0] = np.nan

        folder = write_adapter(tmp_path / "a", change=spoil)
        assert "NaN" in self.refusal(store, layout, folder)

    def test_written_to_meanwhile(self, store, layout, tmp_path, monkeypatch):
        """A mixture of two adapters would be well-formed: it is refused all the same."""
        folder = write_adapter(tmp_path / "a")
        copy = shutil.copyfile

        def disturbed(source, to):
            copy(source, to)
            write_adapter(folder, seed=1)

        monkeypatch.setattr(module.shutil, "copyfile", disturbed)
        assert "was written to while it was copied" in self.refusal(store, layout, folder)

    def test_stored_before_is_checked_again(self, store, tmp_path):
        """That it is there does not mean that this server can take it."""
        folder = write_adapter(tmp_path / "a")
        store.add(folder)
        with pytest.raises(AdapterError, match="rank 4"):
            store.add(folder, max_rank=2)


def test_a_killed_copier_leaves_nothing(store, layout, tmp_path):
    """What it left is removed by the next one."""
    folder = write_adapter(tmp_path / "a")
    leftover = layout.adapters / ".building" / "from-0123456789abcdef" / "tmp"
    leftover.mkdir(parents=True)
    (leftover / FILES[1]).write_bytes(b"half")
    store.add(folder)
    assert not leftover.exists()


def test_two_at_once_of_one_folder(store, tmp_path, monkeypatch):
    """The second waits for the first, and both have the same."""
    folder = write_adapter(tmp_path / "a")
    copying, go_on = threading.Event(), threading.Event()
    copy = shutil.copyfile

    def slow(source, to):
        copying.set()
        assert go_on.wait(10)
        return copy(source, to)

    monkeypatch.setattr(module.shutil, "copyfile", slow)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(store.add, folder)
        assert copying.wait(10)
        second = threads.submit(store.add, folder)
        go_on.set()
        assert first.result() == second.result()


def test_folders_that_never_change_are_not_copied(store, tmp_path):
    """They have the digest that a copy would have, and are read once until they are forgotten."""
    folder = write_adapter(tmp_path / "a")
    uncopied = UncopiedAdapters()
    first = uncopied.add(folder, base=BASE)
    assert first.path == folder
    assert first.digest == store.add(folder).digest
    write_adapter(folder, seed=1)
    assert uncopied.add(folder) is first
    uncopied.forget(folder)
    uncopied.forget(folder)
    assert uncopied.add(folder).digest != first.digest


def test_uncopied_ones_are_checked_all_the_same(tmp_path):
    """An error leaves nothing behind."""
    uncopied = UncopiedAdapters()
    with pytest.raises(AdapterError, match="rank 4"):
        uncopied.add(write_adapter(tmp_path / "a"), max_rank=2)
    assert uncopied.add(tmp_path / "a", max_rank=4).info.rank == 4
