import pytest

from enginehouse.tasks.answers import strip_reasoning


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        ("42", "42"),
        ("  two  ", "  two  "),
        ("<think>hm</think>\n\n42", "42"),
        ("\n<think>\nhm\n</think>42", "42"),
        ("the template opened it</think> 42", "42"),
        ("<think>never closed 42", ""),
        ("I write <think> in prose", "I write <think> in prose"),
        ("in <think>prose</think> too", "in <think>prose</think> too"),
        ("", ""),
    ],
)
def test_only_the_answer_is_left(text, visible):
    """Reasoning in front goes, an unclosed block leaves nothing, other text stays as it is."""
    assert strip_reasoning(text) == visible
