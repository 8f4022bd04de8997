from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.core.errors import DataError
from enginehouse.tasks import gsm8k
from enginehouse.tasks.base import Item, Measure, Outcome
from enginehouse.tasks.data import Source
from enginehouse.tasks.gsm8k import GSM8K, last_number, marked_number

TEST_SET = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "test.jsonl"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 18", 18),
        ("####18", 18),
        ("####\n18", 18),
        ("1 + 1 = 2\n#### $1,450,000.00 in all", 1450000),
        ("**#### -3**", -3),
        ("#### **-3**", -3),
        ("#### \u221210 degrees", -10),
        ("#### $-5", -5),
        ("#### -$5", -5),
        ("#### 12.50", Fraction(25, 2)),
        ("#### 1/2", Fraction(1, 2)),
        ("#### 1{,}000", 1000),
        ("#### _7_", 7),
        ("#### 5%", 5),
        ("#### 1\n#### 2", 2),
        ("#### 3 - so three", 3),
    ],
)
def test_the_number_behind_the_last_marker(text, number):
    """Commas, currency, emphasis, units, trailing zeros and signs do not matter."""
    assert marked_number(text) == number


@pytest.mark.parametrize(
    "text",
    ["18", "#### eighteen", "#### Step 3: 4", "#### 2 + 3 = 5", "#### 20/4 = 5", "#### 1/0", ""],
)
def test_no_number_behind_a_marker(text):
    """A heading, a sum and a division by zero are no marked answers."""
    assert marked_number(text) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("So she has 16 - 3 = 13.", 13),
        ("It costs $1,234.50!", Fraction(2469, 2)),
        ("10-5", 5),
        ("pages 5\u201310", 10),
        ("is \u22125", -5),
        ("- 5 apples", 5),
        ("#### 2 + 3 = 5", 5),
        ("\\boxed{42}", 42),
        ("Rs.500", 500),
        ("no number", None),
        ("9" * 5000, None),
        ("", None),
    ],
)
def test_the_last_number(text, number):
    """A hyphen between numbers or at a list's start is no minus; endless digits are no number."""
    assert last_number(text) == number


@given(st.text())
def test_no_text_breaks_the_reading(text):
    """Whatever a model writes is a number or none."""
    for found in (marked_number("#### " + text), last_number(text)):
        assert found is None or isinstance(found, Fraction)


@given(st.integers(-(10**12), 10**12))
def test_every_whole_number_is_read_in_every_dress(number):
    """With thousands' commas, zeros and a unit, a number stays the same."""
    assert marked_number(f"#### {number:,}.00 dollars") == number
    assert last_number(f"It is {number:,}.") == number


@pytest.mark.parametrize(
    ("text", "outcome", "strict", "answer"),
    [
        ("9 * 2 = 18\n#### 18", Outcome.CORRECT, 1.0, "18"),
        ("The answer is 18.00", Outcome.CORRECT, 0.0, "18"),
        ("#### 17\nor 18", Outcome.WRONG, 0.0, "17"),
        ("#### 17.5", Outcome.WRONG, 0.0, "17.5"),
        ("I do not know", Outcome.UNPARSABLE, 0.0, None),
        ("<think>18</think>I do not know", Outcome.UNPARSABLE, 0.0, None),
        ("<think>17</think>18", Outcome.CORRECT, 0.0, "18"),
        ("", Outcome.UNPARSABLE, 0.0, None),
    ],
)
def test_scores(text, outcome, strict, answer):
    """The marked number decides, else the last; without any the answer is unparsable."""
    score = GSM8K().score_text(Item(id="0", data={"question": "?", "answer": "18"}), text)
    assert score.outcome is outcome
    assert score.measures == {"strict_match": Measure(strict)}
    assert score.answer == answer


def test_the_examples_follow_their_own_instruction():
    """Every worked answer ends with its marked number, and the question comes last."""
    asked = GSM8K().ask(Item(id="0", data={"question": "How many?", "answer": "1"}))
    turns = asked.prompt.messages
    assert [turn.role for turn in turns] == ["user", "assistant"] * 4 + ["user"]
    for turn in turns[1::2]:
        assert turn.content.splitlines()[-1] == f"#### {marked_number(turn.content)}"
    assert turns[-1].content.endswith("\n\nHow many?")


def test_the_packaged_subset_is_labelled(monkeypatch):
    """Its ids are places in the original file, and it says that it is a subset."""
    row = {"id": "gsm8k-test-0013", "prompt": "Q?", "expected": "7", "upstream_answer": "x\n#### 7"}
    monkeypatch.setattr(
        gsm8k,
        "package_source",
        lambda requirement, *, member, sha256: Source(
            content=json.dumps(row).encode(), name=requirement, kind=".jsonl"
        ),
    )
    data = GSM8K().load(data=None, seed=0)
    assert data.items == [Item(id="13", data={"question": "Q?", "answer": "7"})]
    assert data.is_subset
    assert data.licence == "MIT License"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "Q?", "answer": "7"}', "'answer' does not end with"),
        ('{"question": "Q?"}', "there is no field 'answer'"),
        ('{"question": "", "answer": "#### 7"}', "'question' is empty"),
    ],
)
def test_a_wrong_record_is_named(tmp_path, line, message):
    """File, line, and what is wrong."""
    file = tmp_path / "mine.jsonl"
    file.write_text('{"question": "Q?", "answer": "#### 7"}\n' + line)
    with pytest.raises(DataError, match=rf"mine.jsonl, line 2: {message}"):
        GSM8K().load(data=str(file), seed=0)


def test_the_hubs_file_is_read(hub):
    """`hf:` works as `data`; the commit is in the record."""
    hub.files["openai/gsm8k", "main/test.jsonl"] = b'{"question": "Q?", "answer": "#### 7"}'
    data = GSM8K().load(data="hf:openai/gsm8k:main/test.jsonl", seed=0)
    assert data.items[0].data == {"question": "Q?", "answer": "7"}
    assert data.source.startswith("hf:openai/gsm8k@0123")


@pytest.mark.skipif(not TEST_SET.exists(), reason=f"{TEST_SET} is not on this machine")
def test_the_original_test_set():
    """All 1,319 reference solutions are scored as correct, strictly, and it is no subset."""
    data = GSM8K().load(data=str(TEST_SET), seed=0)
    assert len(data.items) == 1319
    assert not data.is_subset
    lines = TEST_SET.read_text().splitlines()
    for item, line in zip(data.items, lines, strict=True):
        score = GSM8K().score_text(item, json.loads(line)["answer"])
        assert score.outcome is Outcome.CORRECT
        assert score.measures["strict_match"].value == 1.0
