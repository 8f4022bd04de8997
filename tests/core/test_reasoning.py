import pytest

from enginehouse.core.reasoning import Separated, separate_reasoning, strip_reasoning

HARMONY = (
    "<|channel|>analysis<|message|>9 * 2 = 17?<|end|>"
    "<|start|>assistant<|channel|>final<|message|>It is 18.<|return|>"
)


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        ("42", "42"),
        ("  two  ", "  two  "),
        ("<think>hm</think>\n\n42", "42"),
        ("\n<think>\nhm\n</think>42", "42"),
        ("the template opened it</think> 42", "42"),
        ("first</think><think>then</think>42", "42"),
        ("<think>never closed 42", ""),
        ("I write <think> in prose", "I write <think> in prose"),
        ("the tags `<think>` and `</think>` mean it", "the tags `<think>` and `</think>` mean it"),
        ("in <think>reasoning</think> too", "in  too"),
        ("<think>a</think>1 <think>b</think>2", "1 2"),
        ("<think>a</think>\n<think>b</think>\n42", "42"),
        ("Let me see.\n<think>17</think>\n42", "Let me see.\n\n42"),
        ("Let me see.\n<think>17, or so", "Let me see.\n"),
        ("<think>I may write <think> here</think>42", "42"),
        ("<thinking>17</thinking>42", "42"),
        ("<Think>17</Think>42", "42"),
        ("[THINK]17[/THINK]42", "42"),
        ("[THINK]17", ""),
        ("17[/THINK]42", "42"),
        ("<think>not yet </thinking> 17</think>42", "42"),
        ("<thought>17</thought>42", "42"),
        ("<reasoning>17</reasoning><answer>42</answer>", "<answer>42</answer>"),
        ("<|begin_of_thought|>17<|end_of_thought|>42", "42"),
        ("", ""),
    ],
)
def test_only_the_answer_is_left(text, visible):
    """Blocks go wherever they stand, an unclosed one hides the rest, other text stays."""
    assert strip_reasoning(text) == visible


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        (HARMONY, "It is 18."),
        (HARMONY.removesuffix("<|return|>"), "It is 18."),
        ("<|channel|>analysis<|message|>9 * 2 = 17?", ""),
        ('<|channel|>final <|constrain|>json<|message|>{"a": 18}', '{"a": 18}'),
        ("analysisWe need 9 * 2 = 17?assistantfinalIt is 18.", "It is 18."),
        ("analysisFirst.assistantcommentaryHm.assistantanalysisThen.assistantfinal18", "18"),
        ("so it is 17?assistantfinal18", "18"),
        ("analysisWe need 9 * 2", ""),
        ("analysis of the data gives 18", "analysis of the data gives 18"),
        ("analysis", "analysis"),
    ],
)
def test_of_harmony_only_the_final_channel_is_left(text, visible):
    """With its markup, and as it looks once the server has dropped the special tokens."""
    assert strip_reasoning(text) == visible


@pytest.mark.parametrize("text", ["<think>17, or", "[THINK]17", "analysisWe need 17"])
def test_unfinished_thoughts_are_kept_on_request(text):
    """A required call is looked for even there."""
    assert strip_reasoning(text, keep_unfinished=True) == text
    assert strip_reasoning(f"hm</think>{text}", keep_unfinished=True).strip() == text


@pytest.mark.parametrize(
    ("text", "end", "separated"),
    [
        ("It is 42.", None, Separated(visible="It is 42.")),
        (
            "<think>six by seven</think>42",
            None,
            Separated(visible="42", reasoning_words=3),
        ),
        (
            "<think>six by seven",
            None,
            Separated(visible="", reasoning_words=3, finished=False),
        ),
        ("six by seven END\n42", "END", Separated(visible="42", reasoning_words=3)),
        ("a END b END 42", "END", Separated(visible="42", reasoning_words=2)),
        (
            "<think>a</think> b END <think>c",
            "END",
            Separated(visible="", reasoning_words=3, finished=False),
        ),
        ("It is 42.", "END", Separated(visible="It is 42.")),
    ],
)
def test_reasoning_is_counted(text, end, separated):
    """In words; and it is known whether it came to an end."""
    assert separate_reasoning(text, end=end) == separated
