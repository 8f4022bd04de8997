from __future__ import annotations

import json

import numpy as np
import pytest
from tests.support.tiny_checkpoints import SHAPES, write_checkpoint

from enginehouse.core.errors import ModelError
from enginehouse.weights import checkpoint
from enginehouse.weights.checkpoint import checked_digest, digest_of


@pytest.fixture
def served(tmp_path):
    """What the server was started with."""
    return write_checkpoint(tmp_path / "served")


def test_another_of_the_same_shape_is_taken(served, layout, tmp_path):
    """Its digest is that of its content, wherever it lies."""
    other = write_checkpoint(tmp_path / "other", seed=1)
    digest = checked_digest(other, served=served, layout=layout)
    assert digest == digest_of(other, layout=layout) != digest_of(served, layout=layout)
    copy = write_checkpoint(tmp_path / "copy", seed=1)
    assert checked_digest(copy, served=served, layout=layout) == digest


def test_what_savers_change_is_no_other_architecture(served, layout, tmp_path):
    """Versions, caches and the name it was loaded under differ between equal models."""
    free = {"transformers_version": "9.9", "use_cache": False, "_name_or_path": "x", "pad": 1}
    other = write_checkpoint(tmp_path / "other", **free)
    assert checked_digest(other, served=served, layout=layout)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"shapes": SHAPES | {"model.norm.weight": (5,)}}, r"norm.weight is F32 \[5\]"),
        ({"shapes": {"model.norm.weight": (4,)}}, "it has no model.embed_tokens.weight"),
        ({"shapes": SHAPES | {"model.x": (1,)}}, "model.x is not in the served one"),
        ({"dtype": "int32"}, "is I32, and F32"),
        ({"model_type": "qwen2"}, "architecture"),
        ({"rope_theta": 500000}, "architecture"),
    ],
)
def test_what_does_not_fit_is_refused(served, layout, tmp_path, wrong, said):
    """Each with its reason: an engine would load it without a word."""
    other = write_checkpoint(tmp_path / "other", **wrong)
    with pytest.raises(ModelError, match=said) as caught:
        checked_digest(other, served=served, layout=layout)
    assert caught.value.fix


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_another_type_of_floats_is_taken(served, layout, tmp_path, dtype):
    """A trainer keeps its master weights in float32; an engine casts to what it serves."""
    other = write_checkpoint(tmp_path / "other", dtype=dtype)
    assert checked_digest(other, served=served, layout=layout)
    assert checked_digest(served, served=other, layout=layout)


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_may_be_written_or_not(served, layout, tmp_path, tied):
    """Where it is the embedding, savers differ; elsewhere it is missing or too much."""
    shapes = SHAPES | {"lm_head.weight": (8, 4)}
    served = write_checkpoint(tmp_path / "served", shapes=shapes, tie_word_embeddings=tied)
    other = write_checkpoint(tmp_path / "other", tie_word_embeddings=tied)
    if tied:
        assert checked_digest(other, served=served, layout=layout)
        return
    with pytest.raises(ModelError, match="lm_head"):
        checked_digest(other, served=served, layout=layout)


def test_a_pickle_is_refused(served, layout, tmp_path):
    """It may run code in the engine."""
    other = write_checkpoint(tmp_path / "other")
    (other / "model.safetensors").rename(other / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickle"):
        checked_digest(other, served=served, layout=layout)


@pytest.mark.parametrize("keep", [0, 7, 60, -1])
def test_half_written_weights_are_refused(served, layout, tmp_path, keep):
    """Cut anywhere, its last byte included."""
    other = write_checkpoint(tmp_path / "other")
    file = other / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match="incomplete"):
        checked_digest(other, served=served, layout=layout)


def test_a_missing_shard_is_refused(served, layout, tmp_path):
    """The index names what must be there."""
    other = write_checkpoint(tmp_path / "other")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (other / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="1 of 2"):
        checked_digest(other, served=served, layout=layout)


def test_no_folder_is_refused(served, layout, tmp_path):
    """In words."""
    with pytest.raises(ModelError, match="cannot read"):
        checked_digest(tmp_path / "nowhere", served=served, layout=layout)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_diverged_weights_are_refused(layout, tmp_path, dtype, value):
    """One such value anywhere; and again, though the digest is known by then."""
    served = write_checkpoint(tmp_path / "served", dtype=dtype)
    bad = write_checkpoint(tmp_path / "bad", dtype=dtype, last=value)
    for _ in range(2):
        with pytest.raises(ModelError, match=r"norm\.weight .*NaN"):
            checked_digest(bad, served=served, layout=layout)


@pytest.mark.parametrize(("bits", "is_fine"), [(0x7F7F, True), (0x7F80, False), (0xFFC1, False)])
def test_bfloat16_that_diverged_is_refused(layout, tmp_path, bits, is_fine):
    """A type that numpy does not have; its largest finite value is fine."""

    def write(name, values):
        folder = write_checkpoint(tmp_path / name)
        head = b'{"x":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]}}'
        content = len(head).to_bytes(8, "little") + head + np.array(values, "<u2").tobytes()
        (folder / "model.safetensors").write_bytes(content)
        return folder

    served, other = write("served", [0] * 4), write("other", [0, 0, 0, bits])
    if is_fine:
        assert checked_digest(other, served=served, layout=layout)
        return
    with pytest.raises(ModelError, match=r"\bx .*NaN"):
        checked_digest(other, served=served, layout=layout)


def test_values_are_looked_at_once(layout, tmp_path, monkeypatch):
    """The second look at the same content is free."""
    served = write_checkpoint(tmp_path / "served")
    checked_digest(served, served=served, layout=layout)
    monkeypatch.setattr(checkpoint, "_require_finite", lambda _: pytest.fail("looked again"))
    copy = write_checkpoint(tmp_path / "copy")
    assert checked_digest(copy, served=served, layout=layout)
