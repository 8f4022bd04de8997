from __future__ import annotations

import json

import pytest

from enginehouse.core.errors import DataError
from enginehouse.tasks import hellaswag
from enginehouse.tasks.base import Choose, Outcome
from enginehouse.tasks.data import Source
from enginehouse.tasks.hellaswag import HellaSwag, clean

ORIGINAL = {
    "ind": 24,
    "activity_label": "Roof shingle removal",
    "ctx_a": "A man is sitting on a roof.",
    "ctx_b": "he starts",
    "ctx": "A man is sitting on a roof. he starts",
    "endings": ["is using wrap.", "is ripping  tiles off.", "[step] holds a cube.", "pulls up."],
    "label": 3,
}
WIKIHOW = ORIGINAL | {
    "activity_label": "Health",
    "ctx_a": "[header] How to run [title] Warm up. [step] Stretch first.",
    "ctx_b": "",
    "label": "2",
}


def _load(tmp_path, *rows: dict[str, object]):
    file = tmp_path / "hellaswag_val.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return HellaSwag().load(data=str(file), seed=0)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        (" a [title] b ", "a.  b".replace("  ", " ")),
        ("[header] How to [title] Go. [step] Run", " How to. Go. Run"),
        ("a [step] b", "a b"),
        ("end [step]", "end "),
        ("three   spaces", "three  spaces"),
        ("[a [b] c] d", " c] d"),
    ],
)
def test_brackets_go_as_in_the_harness(text, cleaned):
    """The order of steps shows: pairs of spaces are replaced once, and none is stripped at last."""
    assert clean(text) == cleaned


def test_an_item_is_asked_as_the_harness_asks(tmp_path):
    """Activity, ctx_a and the capitalised ctx_b are the context; endings follow a space."""
    data = _load(tmp_path, ORIGINAL, WIKIHOW)
    first, second = (HellaSwag().ask(item) for item in data.items)
    assert first == Choose(
        context="Roof shingle removal: A man is sitting on a roof. He starts",
        continuations=(
            " is using wrap.",
            " is ripping tiles off.",
            "  holds a cube.",
            " pulls up.",
        ),
    )
    assert isinstance(second, Choose)
    assert second.context == "Health: How to run. Warm up. Stretch first."


def test_the_ending_is_scored_per_character(tmp_path):
    """The length is the cleaned ending's, without the space put before it."""
    (item,) = _load(tmp_path, ORIGINAL).items
    lengths = [len(ending) for ending in item.data["endings"]]
    even = [-0.5 * length for length in lengths]
    even[3] += 0.01
    score = HellaSwag().score_choice(item, even)
    assert score.outcome is Outcome.CORRECT
    assert score.answer == "pulls up."
    assert score.measures["acc"].value == 1.0
    even[0] += 0.1
    assert HellaSwag().score_choice(item, even).outcome is Outcome.WRONG


def test_a_few_items_are_a_subset(tmp_path):
    """Ids are places in the file; with fewer than 10,042 items the data set says so."""
    data = _load(tmp_path, ORIGINAL, WIKIHOW)
    assert [item.id for item in data.items] == ["0", "1"]
    assert [item.data["label"] for item in data.items] == [3, 2]
    assert data.is_subset
    assert data.full_size == 10042


def test_the_packaged_items_give_the_same_prompts(tmp_path, monkeypatch):
    """The package has ctx only; the begun last sentence is ctx_b, WikiHow items have none."""
    packaged = [
        {
            "id": f"hellaswag-val-0001{n}",
            "activity_label": row["activity_label"],
            "ctx": f"{row['ctx_a']} {row['ctx_b']}".strip(),
            "endings": row["endings"],
            "expected_index": int(row["label"]),
        }
        for n, row in enumerate((ORIGINAL, WIKIHOW))
    ]
    content = "\n".join(map(json.dumps, packaged)).encode()
    monkeypatch.setattr(
        hellaswag,
        "package_source",
        lambda requirement, *, member, sha256: Source(content=content, name=member, kind=".jsonl"),
    )
    found = HellaSwag().load(data=None, seed=0)
    expected = _load(tmp_path, ORIGINAL, WIKIHOW)
    assert [item.data for item in found.items] == [item.data for item in expected.items]
    assert [item.id for item in found.items] == ["10", "11"]
    assert found.licence == "MIT License"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"endings": ["a", "b", "c"]}, "'endings' must hold 4"),
        ({"endings": ["a", "b", "c", "[step]"]}, "'endings' must hold 4"),
        ({"endings": "abcd"}, "'endings' must be a list"),
        ({"label": 4}, "'label' must be a whole number from 0 to 3"),
        ({"label": ""}, "'label' must be a whole number"),
        ({"activity_label": None}, "'activity_label' must be a text"),
    ],
)
def test_a_wrong_record_is_named(tmp_path, change, message):
    """File, line and field; the test split without labels is no surprise."""
    with pytest.raises(DataError, match=f"line 2: {message}"):
        _load(tmp_path, ORIGINAL, ORIGINAL | change)
