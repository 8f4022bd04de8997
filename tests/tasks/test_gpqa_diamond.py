"""All questions here are made up: GPQA's own may not be published."""

from __future__ import annotations

import csv

import pytest

from enginehouse.core.errors import DataError
from enginehouse.tasks.base import Outcome
from enginehouse.tasks.gpqa_diamond import COLUMNS, GPQADiamond, answer_letter


def _write(path, count=12, **change: str):
    names = ["Record ID", "Subdomain", "Question", *COLUMNS]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for n in range(count):
            fields = {name: f"{name} of\nitem {n}" for name in names}
            fields["Record ID"] = f"rec{n}"
            writer.writerow(fields | change)
    return str(path)


def test_choices_are_permuted_by_seed_and_item(tmp_path):
    """The same seed gives the same order, another seed or item another; the key follows."""
    file = _write(tmp_path / "fake.csv")
    first, again, other = (GPQADiamond().load(data=file, seed=seed) for seed in (1, 1, 2))
    assert first.items == again.items
    assert first.digest == other.digest
    assert first.items != other.items
    assert len({item.data["answer"] for item in first.items}) > 1
    for item in (*first.items, *other.items):
        right = item.data["choices"]["ABCD".index(item.data["answer"])]
        assert right == f"Correct Answer of\nitem {item.id.removeprefix('rec')}"
        assert len(set(item.data["choices"])) == 4
    assert first.is_subset


def test_the_order_is_the_same_on_every_machine(tmp_path):
    """Permutations are pinned: a change of them changes every figure."""
    data = GPQADiamond().load(data=_write(tmp_path / "fake.csv"), seed=0)
    assert "".join(item.data["answer"] for item in data.items) == "DACDCDDDCCCB"


def test_the_question_is_asked_with_lettered_choices(tmp_path):
    """One turn, no example; the letters are those of the key."""
    item = GPQADiamond().load(data=_write(tmp_path / "fake.csv"), seed=0).items[0]
    (turn,) = GPQADiamond().ask(item).prompt.messages
    assert turn.role == "user"
    assert "Question of\nitem 0" in turn.content
    assert f"\n{item.data['answer']}) Correct Answer of" in turn.content


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Answer: C", "C"),
        ("**Answer: C**", "C"),
        ("**Answer:** (C)", "C"),
        ("The final answer: **(b)**.", "B"),
        ("Answer: $\\boxed{D}$", "D"),
        ("Answer: \\text{B}", "B"),
        ("Answer:\n\n D.", "D"),
        ("Answer: A\nNo.\nAnswer: B) because", "B"),
        ("answer: c", "C"),
        ("answer: a dipole", None),
        ("Answer: Apple", None),
        ("Answer: E", None),
        ("Answer: \\boxed{\\text{C}}", "C"),
        ("\\boxed{\\text{C}}", "C"),
        ("So it is $\\boxed{\\mathbf{C}}$.", "C"),
        ("$$\\boxed{\\text{Option D}}$$", "D"),
        ("\\boxed{C) carbon}", "C"),
        ("\\boxed{A}\nAnswer: B", "B"),
        ("Answer: C\n\\boxed{D}", "C"),
        ("**Answer**: \\(\\boxed{\\textbf{(C)}}\\)", "C"),
        ("Answer: \\textbf{C}", "C"),
        ("Answer: `C`", "C"),
        ('Answer: "C"', "C"),
        ("Answer: \u201cC\u201d", "C"),
        ("Answer: Option C", "C"),
        ("The answer is option (c).", "C"),
        ("Answer: the correct choice is C.", "C"),
        ("Answer: c)", "C"),
        ("Answer: c) carbon", "C"),
        ("answer: (a) dipole", "A"),
        ("the answer is a dipole", None),
        ("### Answer\n\n**C**", "C"),
        ("**Final Answer**\n\nC.\n", "C"),
        ("Answer\nA dipole", None),
        ("Answer: A\n\n### Answer\nB", "B"),
        ("Answer\uff1aC", "C"),
        ("Answer = C", "C"),
        ("Answer -> C", "C"),
        ("The correct option is C.", "C"),
        ("So the best choice is (C).", "C"),
        ("The answer must be C.", "C"),
        ("The answer is not A.", None),
        ("Answer: D-glucose", None),
        ("Answer: C=O", None),
        ("\\boxed{42}", None),
        ("Answers: see A", None),
        ("C", None),
        ("", None),
    ],
)
def test_the_last_answer_counts(text, letter):
    """Emphasis, brackets and LaTeX do not matter; words that begin with a letter are none."""
    assert answer_letter(text) == letter


def test_scores(tmp_path):
    """Right, wrong, unparsable."""
    item = GPQADiamond().load(data=_write(tmp_path / "fake.csv"), seed=0).items[0]
    right = item.data["answer"]
    wrong = "ABCD"[("ABCD".index(right) + 1) % 4]
    score = GPQADiamond().score_text
    assert score(item, f"so\nAnswer: {right}").outcome is Outcome.CORRECT
    assert score(item, f"Answer: {right}, no\nAnswer: {wrong}").outcome is Outcome.WRONG
    assert score(item, "I do not know").outcome is Outcome.UNPARSABLE


def test_without_access_the_gate_is_named(hub):
    """Nothing is shipped: gate, token and `data` are in the error."""
    hub.files["Idavidrein/gpqa", "gpqa_diamond.csv"] = b"x"
    hub.gated.add("Idavidrein/gpqa")
    with pytest.raises(DataError, match=r"gated(.|\n)*HF_TOKEN(.|\n)*`data`"):
        GPQADiamond().load(data=None, seed=0)


def test_with_access_the_hubs_file_is_read(hub, tmp_path, monkeypatch):
    """The token opens the gate."""
    file = tmp_path / "fake.csv"
    _write(file, count=198)
    hub.files["Idavidrein/gpqa", "gpqa_diamond.csv"] = file.read_bytes()
    hub.gated.add("Idavidrein/gpqa")
    monkeypatch.setenv("HF_TOKEN", "good")
    data = GPQADiamond().load(data=None, seed=0)
    assert not data.is_subset
    assert "gated" in data.licence


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Record ID": "same"}, r"line \d+: the Record ID 'same'"),
        ({"Question": " "}, "line 2: 'Question' is empty"),
        ({"Incorrect Answer 3": ""}, "line 2: 'Incorrect Answer 3' is empty"),
    ],
)
def test_a_wrong_record_is_named(tmp_path, change, message):
    """File, line and column."""
    with pytest.raises(DataError, match=message):
        GPQADiamond().load(data=_write(tmp_path / "fake.csv", **change), seed=0)


def test_a_missing_file_of_the_users_is_not_blamed_on_the_gate(tmp_path):
    """A wrong `data` is a wrong path."""
    with pytest.raises(DataError, match="data file"):
        GPQADiamond().load(data=str(tmp_path / "gone.csv"), seed=0)
