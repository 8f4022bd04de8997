from __future__ import annotations

import pytest

from enginehouse.core.errors import ModelError
from enginehouse.provisioning.gguf_choice import choose_gguf

PARTS = ["big-00002-of-00002.gguf", "big-00001-of-00002.gguf"]


def test_the_only_model_is_taken():
    """Projectors, statistics and other files are none."""
    names = ["README.md", "mmproj-F16.gguf", "sub/imatrix.gguf", "tiny.Q8_0.gguf"]
    assert choose_gguf(names, where="here") == ("tiny.Q8_0.gguf",)


def test_of_several_the_usual_quantisation_is_taken():
    """Q4_K_M, as llama.cpp itself does; Q4_K_M_L is another."""
    names = ["m-Q2_K.gguf", "m-q4_k_m.gguf", "m-Q8_0.gguf", "m-Q4_K_MX.gguf"]
    assert choose_gguf(names, where="here") == ("m-q4_k_m.gguf",)


def test_otherwise_they_are_listed():
    """And the way to take one of them is said."""
    with pytest.raises(ModelError, match="2 GGUF") as error:
        choose_gguf(["m-Q2_K.gguf", "m-Q8_0.gguf"], where="owner/name")
    assert "m-Q2_K.gguf, m-Q8_0.gguf" in str(error.value)
    assert "hf download" in str(error.value)


def test_all_parts_of_a_split_model_come_first_part_first():
    """They are one model; without all of them there is none."""
    assert choose_gguf(PARTS, where="here") == tuple(reversed(PARTS))
    with pytest.raises(ModelError, match=r"1 of .*2 .*big"):
        choose_gguf(PARTS[:1], where="here")


def test_none_is_an_error():
    """A repository of something else."""
    with pytest.raises(ModelError, match="no GGUF"):
        choose_gguf(["model.safetensors"], where="here")
