"""Models for an engine that loads GGUF files itself."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest

from enginehouse.core.errors import ModelError
from enginehouse.provisioning import models
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.models import ResolvedModel, resolve_model
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout


def text(value: str) -> bytes:
    """A GGUF string."""
    return struct.pack("<Q", len(value)) + value.encode()


def write_gguf(file: Path, *, template: str | None = "{{ messages }}") -> Path:
    """A GGUF file with an architecture and perhaps a chat template."""
    pairs = [text("general.architecture") + struct.pack("<I", 8) + text("tiny")]
    if template is not None:
        pairs.append(text("tokenizer.chat_template") + struct.pack("<I", 8) + text(template))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + b"".join(pairs))
    return file


async def resolve(reference: object, layout: Layout, notes: list[str]) -> ResolvedModel:
    """What llama-server would be given."""
    environment = EngineEnvironment(
        engine="llamacpp",
        version="11434",
        variant="cpu",
        executable=Path("/llama-server"),
        key=None,
        flags={},
    )
    return await resolve_model(
        str(reference),
        environment=environment,
        model_format="gguf",
        context=Context(layout=layout, notify=notes.append),
    )


async def test_a_file_is_given_as_it_is(tmp_path: Path, layout: Layout, notes: list[str]):
    """Its digests are of the file and of the template in it; nothing is converted."""
    file = write_gguf(tmp_path / "tiny.gguf")
    found = await resolve(file, layout, notes)
    assert (found.path, found.name, found.source) == (str(file), "tiny", "gguf")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert found.weights_digest == hashlib.sha256(f"{sha256}  tiny.gguf\n".encode()).hexdigest()
    assert found.chat_template_digest == hashlib.sha256(b"{{ messages }}").hexdigest()
    assert not layout.models.exists()


async def test_a_file_without_a_template_says_so(tmp_path: Path, layout: Layout, notes: list[str]):
    """What is not known has its reason."""
    found = await resolve(write_gguf(tmp_path / "tiny.gguf", template=None), layout, notes)
    assert found.chat_template_digest is None
    assert found.unknown["chat_template_digest"] == "the file has no chat template"


async def test_a_folder_with_one_file_is_that_file(
    tmp_path: Path, layout: Layout, notes: list[str]
):
    """Under the folder's name; with several, one must be chosen."""
    file = write_gguf(tmp_path / "mine" / "tiny-Q8_0.gguf")
    found = await resolve(tmp_path / "mine", layout, notes)
    assert (found.path, found.name) == (str(file), "mine")
    write_gguf(tmp_path / "mine" / "tiny-Q2_K.gguf")
    with pytest.raises(ModelError, match=r"GGUF .*chosen"):
        await resolve(tmp_path / "mine", layout, notes)


async def test_any_part_of_a_split_model_is_the_whole(
    tmp_path: Path, layout: Layout, notes: list[str]
):
    """The server is given the first; a missing one is an error now, not when it loads."""
    first = write_gguf(tmp_path / "m-00001-of-00002.gguf")
    with pytest.raises(ModelError, match="1 of the 2"):
        await resolve(first, layout, notes)
    second = write_gguf(tmp_path / "m-00002-of-00002.gguf")
    assert (await resolve(second, layout, notes)).path == str(first)


async def test_a_checkpoint_says_what_to_do(tmp_path: Path, layout: Layout, notes: list[str]):
    """llama.cpp does not load it, and other engines do."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match="GGUF") as error:
        await resolve(tmp_path, layout, notes)
    assert "convert_hf_to_gguf.py" in str(error.value)
    assert "--engine vllm" in str(error.value)


async def test_a_broken_file_fails_before_a_server_is_started(
    tmp_path: Path, layout: Layout, notes: list[str]
):
    """A pointer of Git LFS, most often."""
    file = tmp_path / "tiny.gguf"
    file.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ModelError, match="GGUF"):
        await resolve(file, layout, notes)


async def test_the_bundled_model_is_not_converted(
    tmp_path: Path, layout: Layout, notes: list[str], monkeypatch: pytest.MonkeyPatch
):
    """The package's file is what llama-server loads."""
    file = write_gguf(tmp_path / "SmolLM2.gguf")
    monkeypatch.setattr(models, "package_file", lambda *_, **__: file)
    found = await resolve("smollm2", layout, notes)
    assert (found.path, found.name, found.source) == (str(file), "smollm2", "bundled")


def test_of_a_hub_repository_one_file_is_downloaded():
    """Not every quantisation; one that has none says where to look."""
    names = ["README.md", "m-Q4_K_M.gguf", "m-Q8_0.gguf"]
    assert models._choose_gguf("owner/m-GGUF", names, engine="llamacpp") == ["m-Q4_K_M.gguf"]
    with pytest.raises(ModelError, match="GGUF") as error:
        models._choose_gguf("owner/m", ["config.json", "model.safetensors"], engine="llamacpp")
    assert "NAME-GGUF" in str(error.value)
