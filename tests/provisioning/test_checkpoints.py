from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from enginehouse.core.errors import ModelError
from enginehouse.provisioning.checkpoints import read_checkpoint

INDEX = "model.safetensors.index.json"
WHOLE = "\2\0\0\0\0\0\0\0{}"  # a safetensors file without a tensor


def _folder(path: Path, files: Mapping[str, object]) -> Path:
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(text)
    return path


def test_a_whole_checkpoint(tmp_path: Path):
    """Its configuration and the weight files that engines load."""
    files = {
        "config.json": {"model_type": "llama"},
        "model.safetensors": WHOLE,
        "pytorch_model.bin": "the same, older",
        "tokenizer.json": {},
    }
    found = read_checkpoint(_folder(tmp_path / "m", files))
    assert found.config == {"model_type": "llama"}
    assert [path.name for path in found.weights] == ["model.safetensors"]
    assert found.notes == ()


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": DEEP, "model.safetensors": "w"},
        {"config.json": "[]", "model.safetensors": "w"},
        {"config.json": {}, INDEX: DEEP, "model.safetensors": "w"},
        {"adapter_config.json": DEEP},
        {"adapter_config.json": "[]"},
    ],
)
def test_json_that_is_no_configuration_is_refused(tmp_path: Path, files: Mapping[str, object]):
    """Nested too deeply, or not an object: a ModelError, as for any folder without a model."""
    with pytest.raises(ModelError):
        read_checkpoint(_folder(tmp_path / "m", files))


def test_what_trainers_leave_is_no_weight(tmp_path: Path):
    """training_args.bin and optimizer.bin lie beside a checkpoint's own *.bin files."""
    names = ("config.json", "pytorch_model.bin", "training_args.bin", "optimizer.bin")
    found = read_checkpoint(_folder(tmp_path / "m", dict.fromkeys(names, "{}")))
    assert [path.name for path in found.weights] == ["pytorch_model.bin"]
    assert "tokenizer" in found.notes[0]


def test_the_index_says_which_files_count(tmp_path: Path):
    """A second copy of the weights (consolidated) is not among them."""
    files = {
        "config.json": {},
        INDEX: {"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}},
        "m-1.safetensors": WHOLE,
        "m-2.safetensors": WHOLE,
        "consolidated.safetensors": "12",
    }
    found = read_checkpoint(_folder(tmp_path / "m", files))
    assert [path.name for path in found.weights] == ["m-1.safetensors", "m-2.safetensors"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "no config.json, and is empty"),
        ({"readme": ""}, "no config.json"),
        ({"config.json": "{"}, "not valid JSON"),
        ({"config.json": {}}, "holds no weights"),
        ({"config.json": {}, "training_args.bin": ""}, "holds no weights"),
        (
            {"config.json": {}, INDEX: {"weight_map": {"a": "m-1.safetensors"}}},
            "lacks 1 of 1 weight files",
        ),
        ({"config.json": {}, INDEX: "[]", "m.safetensors": "w"}, "not an index of weights"),
        (
            {"config.json": {}, "model.safetensors": "version https://git-lfs.github.com/spec/v1"},
            "git lfs pull",
        ),
        (
            {"adapter_config.json": {"base_model_name_or_path": "Qwen/Qwen3-14B"}},
            "LoRA adapter, not a model.*give Qwen/Qwen3-14B as the model",
        ),
        ({"adapter_config.json": "{"}, "LoRA adapter"),
        ({"m.gguf": "GGUF"}, "give the file itself: .*m.gguf"),
        ({"checkpoint-20/config.json": {}}, "did you mean .*checkpoint-20"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, files: dict[str, object], expected: str):
    """Each kind of folder that is no model is told apart, with what to do."""
    folder = _folder(tmp_path / "m", files)
    with pytest.raises(ModelError, match=f"(?s){expected}"):
        read_checkpoint(folder)


def test_weights_that_cannot_be_read(tmp_path: Path):
    """A link to a file that is gone (a hub cache that was cleaned up): named, with the reason."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(ModelError, match=r"model\.safetensors") as caught:
        read_checkpoint(tmp_path)
    assert caught.value.why == "No such file or directory"
    assert caught.value.fix is not None


def _tensors(head: object, *, data: int) -> bytes:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"weights",
        b"\xff" * 64,  # a head longer than any
        _tensors({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, data=12),
        _tensors({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, data=20),
        _tensors({"w": {"dtype": "F99", "shape": [4], "data_offsets": [0, 16]}}, data=16),
        _tensors({"w": {"dtype": "F32", "shape": [5], "data_offsets": [0, 16]}}, data=16),
        _tensors(b"{" * 64, data=0),
        _tensors(b"[" * 100_000, data=0),
        _tensors(b"\xff\xfe{}", data=0),
    ],
)
@pytest.mark.parametrize("indexed", [False, True])
def test_a_broken_safetensors_file(
    tmp_path: Path,
    content: bytes,
    indexed: bool,  # noqa: FBT001
):
    """Cut off, too long, of no known type, not JSON: refused before an engine is started."""
    files: dict[str, object] = {"config.json": {}, "m-1.safetensors": WHOLE}
    if indexed:
        files[INDEX] = {"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}
    folder = _folder(tmp_path / "m", files)
    (folder / "m-2.safetensors").write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read_checkpoint(folder)
    assert str(folder / "m-2.safetensors") in caught.value.message
    assert caught.value.why
