from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.model_reference import ReferenceKind, parse_model_reference


@pytest.mark.parametrize(
    ("text", "repository", "revision"),
    [
        ("Qwen/Qwen3-14B", "Qwen/Qwen3-14B", None),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B", None),
        ("a/b@main", "a/b", "main"),
        ("a/b@refs/pr/1", "a/b", "refs/pr/1"),
        (" a/b\n", "a/b", None),
    ],
)
def test_a_handle_is_taken_apart(text: str, repository: str, revision: str | None):
    """owner/name and owner/name@revision are handles; surrounding blanks do not matter."""
    reference = parse_model_reference(text)
    assert reference.kind is ReferenceKind.HANDLE
    assert (reference.repository, reference.revision) == (repository, revision)


@pytest.mark.parametrize(
    "text",
    ["/abs/folder", "./a/b", "../b", "~/m", "a/b/c", "x.gguf", "a/b.GGUF", ".", "a b/c", "a--b/c"],
)
def test_what_can_only_be_a_path_is_one(text: str):
    """Explicit paths, GGUF files and whatever the hub allows no name for are paths."""
    reference = parse_model_reference(text)
    assert reference.kind is ReferenceKind.PATH
    assert reference.repository is None


def test_one_word_is_a_name():
    """A word without a slash may be a bundled model or a folder."""
    assert parse_model_reference("smollm2").kind is ReferenceKind.NAME


@pytest.mark.parametrize("text", ["", "   "])
def test_nothing_is_refused(text: str):
    """An empty reference is a configuration error that says what to give."""
    with pytest.raises(ConfigurationError, match="empty"):
        parse_model_reference(text)


def test_a_url_is_refused_with_its_handle():
    """Somebody who pastes the page's address is told the handle."""
    with pytest.raises(ConfigurationError, match=": Qwen/Qwen3-14B"):
        parse_model_reference("https://hub.example/Qwen/Qwen3-14B/tree/main")


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused(text: str):
    """No text makes the parser fail otherwise, and the text itself is kept."""
    try:
        reference = parse_model_reference(text)
    except ConfigurationError:
        return
    assert reference.text == text.strip()
