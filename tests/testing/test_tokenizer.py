"""The fake engine's tokenizer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from enginehouse.testing.fake_engine import tokenizer


@given(st.text())
def test_nothing_is_lost(text: str):
    """Every text comes back from its tokens, and every id is in the vocabulary."""
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, specials=True) == text
    assert all(0 <= token < tokenizer.VOCABULARY_SIZE for token in ids)


@given(st.text(), st.text(alphabet="ab c.", min_size=1))
def test_a_texts_tokens_are_a_prefix_of_the_longer_texts(context: str, more: str):
    """A continuation that begins with a space leaves the context's tokens alone."""
    ids = tokenizer.encode(context.rstrip())
    assert tokenizer.encode(f"{context.rstrip()} {more.lstrip()}")[: len(ids)] == ids


def test_special_tokens():
    """Recognised in a text, left out of an answer."""
    ids = tokenizer.encode("<|im_start|>user\nHi<|im_end|>")
    assert (ids[0], ids[-1]) == (1, tokenizer.END_OF_TURN)
    assert tokenizer.decode(ids) == "user\nHi"


def test_tokens_are_about_as_long_as_real_ones():
    """So that max_tokens means about the same as with a model."""
    text = "The quick brown fox jumps over the lazy dog. " * 10
    assert 2 < len(text) / len(tokenizer.encode(text)) < 5
