"""A copy of an adapter that differs in its alpha alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.tiny_adapters import write_adapter

from enginehouse.core.errors import AdapterError
from enginehouse.tinker.sampling import amplified as module
from enginehouse.tinker.sampling.amplified import amplified
from enginehouse.weights.peft_folder import CONFIG, TENSORS, read_peft_folder


def test_only_alpha_differs(tmp_path: Path):
    """The tensors are the same file, and nothing is left."""
    folder = write_adapter(tmp_path / "mine")
    with amplified(folder, times=1000.0) as copy:
        assert read_peft_folder(copy).alpha == 1000 * read_peft_folder(folder).alpha
        one, other = (json.loads((f / CONFIG).read_text()) for f in (folder, copy))
        assert {key for key in one if one[key] != other[key]} == {"lora_alpha"}
        assert (copy / TENSORS).samefile(folder / TENSORS)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The tensors are copied."""

    def none(*_: object) -> None:
        raise OSError("not here")

    monkeypatch.setattr(Path, "hardlink_to", none)
    folder = write_adapter(tmp_path / "mine")
    with amplified(folder, times=10.0) as copy:
        assert (copy / TENSORS).read_bytes() == (folder / TENSORS).read_bytes()
        assert not (copy / TENSORS).samefile(folder / TENSORS)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is an error about the adapter, and nothing is left."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_link", full)
    folder = write_adapter(tmp_path / "mine")
    with pytest.raises(AdapterError, match="written"), amplified(folder, times=10.0):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
