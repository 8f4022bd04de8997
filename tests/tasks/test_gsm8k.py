from __future__ import annotations

import json
from pathlib import Path

import pytest

from enginehouse.core.errors import DataError
from enginehouse.tasks import gsm8k
from enginehouse.tasks.base import Item, Measure, Outcome
from enginehouse.tasks.data import Source
from enginehouse.tasks.gsm8k import GSM8K
from enginehouse.tasks.numbers import marked_number

TEST_SET = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "test.jsonl"


@pytest.mark.parametrize(
    ("text", "outcome", "strict", "answer"),
    [
        ("9 * 2 = 18\n#### 18", Outcome.CORRECT, 1.0, "18"),
        ("The answer is 18.00", Outcome.CORRECT, 0.0, "18"),
        ("#### 17\nor 18", Outcome.WRONG, 0.0, "17"),
        ("#### 17.5", Outcome.WRONG, 0.0, "17.5"),
        ("#### 35/2", Outcome.WRONG, 0.0, "17.5"),
        ("#### 1/3", Outcome.WRONG, 0.0, "1/3"),
        ("#### 18\n\n- 3 eggs eaten\n- 4 eggs baked", Outcome.CORRECT, 1.0, "18"),
        ("#### 1. Eggs\n16 - 7\n#### 2. Money\nThe answer is 18.", Outcome.CORRECT, 0.0, "18"),
        ("So \\boxed{18}, in 3 steps.", Outcome.CORRECT, 0.0, "18"),
        ("#### 1e999", Outcome.WRONG, 0.0, "1" + "0" * 999),
        ("I do not know", Outcome.UNPARSABLE, 0.0, None),
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
