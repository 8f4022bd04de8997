from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.support.tiny_adapters import BASE, tensors, write_adapter, write_tensors
from tests.support.tiny_checkpoints import write_checkpoint

from enginehouse.core.errors import AdapterError, ModelError, StoreError
from enginehouse.weights.merge import merge
from enginehouse.weights.tensors import as_bytes, read_float32, read_tensors

QUERY = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model of which the output layer shares the embedding's weights."""
    return write_checkpoint(tmp_path / "base", shapes=dict(BASE), tie_word_embeddings=True)


def product(module: str, *, scaling: float) -> np.ndarray:
    """What the adapter adds to a module's weights."""
    made = tensors()
    a, b = (made[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
    return scaling * (b @ a)


def test_changed_weights_are_the_base_and_the_product(base: Path, tmp_path: Path):
    """And the others, the configuration and the tokenizer are as they were."""
    (base / "chat_template.jinja").write_text("{{ messages }}")
    (base / "old.bin").write_bytes(b"pickle")
    merged = merge(base, write_adapter(tmp_path / "adapter"), tmp_path / "a" / "out")
    assert (merged.modules, merged.dtypes, merged.untied) == (4, ("F32",), False)
    before, after = (load_file(f / "model.safetensors") for f in (base, merged.path))
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert len(changed) == 4
    for name in changed:
        wanted = before[name] + product(name.removesuffix(".weight"), scaling=2.0)
        np.testing.assert_allclose(after[name], wanted, rtol=1e-6)
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        assert (merged.path / name).read_bytes() == (base / name).read_bytes()
    assert sorted(path.name for path in merged.path.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({"use_rslora": True}, 8 / 2),
        ({"alpha_pattern": {"layers.0.self_attn.q_proj": 2}}, 0.5),
        ({"lora_alpha": 1}, 0.25),
    ],
)
def test_the_scaling_is_that_of_peft(base: Path, tmp_path: Path, config, scaling: float):
    """The rank is 4 and alpha 8 unless the configuration says otherwise."""
    merged = merge(base, write_adapter(tmp_path / "adapter", **config), tmp_path / "out")
    before, after = (load_file(f / "model.safetensors") for f in (base, merged.path))
    difference = after[f"{QUERY}.weight"] - before[f"{QUERY}.weight"]
    np.testing.assert_allclose(difference, product(QUERY, scaling=scaling), rtol=1e-4, atol=1e-6)


def test_a_tied_output_layer_gets_weights_of_its_own(base: Path, tmp_path: Path):
    """The embedding stays, also where a saver stored both."""

    def add_head(made) -> None:
        made["base_model.model.lm_head.lora_A.weight"] = np.ones((4, 8), "<f4")
        made["base_model.model.lm_head.lora_B.weight"] = np.full((32, 4), 0.5, "<f4")

    adapter = write_adapter(
        tmp_path / "adapter", change=add_head, target_modules=["q_proj", "v_proj", "lm_head"]
    )
    both = shutil.copytree(base, tmp_path / "both")
    stored = load_file(base / "model.safetensors")
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"]
    write_tensors(
        both / "model.safetensors",
        {name: ("F32", array.shape, array.tobytes()) for name, array in stored.items()},
    )
    for folder in (base, both):
        merged = merge(folder, adapter, tmp_path / f"out-{folder.name}")
        assert merged.untied
        after = load_file(merged.path / "model.safetensors")
        embedding = stored["model.embed_tokens.weight"]
        np.testing.assert_array_equal(after["model.embed_tokens.weight"], embedding)
        np.testing.assert_allclose(after["lm_head.weight"], embedding + 2.0 * 2.0, rtol=1e-6)
        config = json.loads((merged.path / "config.json").read_text())
        assert config == json.loads((base / "config.json").read_text()) | {
            "tie_word_embeddings": False
        }


def test_a_checkpoint_in_parts_stays_in_parts(base: Path, tmp_path: Path):
    """With an index that names every tensor's file, and the size of all."""
    stored = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    places = {}
    for number, part in enumerate((sorted(stored)[:6], sorted(stored)[6:]), 1):
        name = f"model-{number:05}-of-00002.safetensors"
        write_tensors(base / name, {n: ("F32", stored[n].shape, stored[n].tobytes()) for n in part})
        places |= dict.fromkeys(part, name)
    index = "model.safetensors.index.json"
    (base / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    merged = merge(base, write_adapter(tmp_path / "adapter"), tmp_path / "out")
    written = json.loads((merged.path / index).read_text())
    assert written["weight_map"] == places
    assert written["metadata"]["total_size"] == sum(array.nbytes for array in stored.values())
    for name, file in places.items():
        after = load_file(merged.path / file)[name]
        changes = name.removesuffix(".weight") in {
            f"model.layers.{layer}.self_attn.{kind}_proj" for layer in (0, 1) for kind in "qv"
        }
        assert np.array_equal(after, stored[name]) is not changes


@pytest.mark.parametrize("keep_dtype", [False, True])
def test_a_bfloat16_base(base: Path, tmp_path: Path, *, keep_dtype: bool):
    """Becomes float32 where it is changed, or is rounded to the nearest bfloat16."""
    stored = load_file(base / "model.safetensors")
    file = base / "model.safetensors"
    write_tensors(
        file, {n: ("BF16", a.shape, as_bytes(a, dtype="BF16")) for n, a in stored.items()}
    )
    rounded = {name: read_float32(file, tensor) for name, tensor in read_tensors(file).items()}
    adapter = write_adapter(tmp_path / "adapter")
    merged = merge(base, adapter, tmp_path / "out", keep_dtype=keep_dtype)
    assert merged.dtypes == ("BF16" if keep_dtype else "F32",)
    out = merged.path / "model.safetensors"
    for name, tensor in read_tensors(out).items():
        module = name.removesuffix(".weight")
        wanted = rounded[name]
        if changed := f"base_model.model.{module}.lora_A.weight" in tensors():
            wanted = wanted + product(module, scaling=2.0)
        assert tensor.dtype == ("F32" if changed and not keep_dtype else "BF16")
        limit = 2**-8 if keep_dtype and changed else 1e-6
        np.testing.assert_allclose(read_float32(out, tensor), wanted, rtol=limit)


def test_bfloat16_is_rounded_to_nearest_even():
    """Exact halves go to the even neighbour, as torch rounds them."""
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0xBF808001], "<u4")
    assert np.frombuffer(as_bytes(bits.view("<f4"), dtype="BF16"), "<u2").tolist() == [
        0x3F80,
        0x3F82,
        0x3F81,
        0x3F80,
        0xBF81,
    ]


def test_what_cannot_be_merged_is_refused(base: Path, tmp_path: Path):
    """And nothing is left behind."""
    adapter = write_adapter(tmp_path / "adapter")
    quantized = write_checkpoint(
        tmp_path / "quantized", shapes=dict(BASE), quantization_config={"quant_method": "awq"}
    )
    other = write_checkpoint(tmp_path / "other")
    prefixed = write_adapter(
        tmp_path / "prefixed", prefix="base_model.model.language_model.", target_modules=None
    )
    with pytest.raises(StoreError, match="exists already"):
        merge(base, adapter, base)
    with pytest.raises(ModelError, match="is quantized"):
        merge(quantized, adapter, tmp_path / "out")
    with pytest.raises(AdapterError, match="base model"):
        merge(other, adapter, tmp_path / "out")
    with pytest.raises(AdapterError, match="merged"):
        merge(base, prefixed, tmp_path / "out")
    shutil.rmtree(base)
    with pytest.raises(ModelError):
        merge(base, adapter, tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_a_write_that_fails_leaves_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As on a full disk."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    adapter = write_adapter(tmp_path / "adapter")
    monkeypatch.setattr("enginehouse.weights.merge._write_file", fail)
    with pytest.raises(OSError, match="No space left"):
        merge(base, adapter, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_the_command(base: Path, tmp_path: Path, call):
    """It says what was written, and refuses what exists."""
    adapter = write_adapter(tmp_path / "adapter")
    words = ("weights", "merge", str(base), str(adapter), str(tmp_path / "out"))
    done = call(*words)
    assert done.code == 0, done.err
    assert done.out == f"{tmp_path / 'out'} has the changes of 4 modules, stored as F32\n"
    again = call(*words)
    assert again.code == 8
    assert "exists already" in again.err
    other = call(*words[:-1], str(tmp_path / "other"), "--keep-dtype", "--json")
    assert other.report["modules"] == 4
