import hashlib
import json
from pathlib import Path

import pytest

from enginehouse.core.errors import DataError
from enginehouse.tasks.base import Generate, Item, Measure, Outcome
from enginehouse.tasks.data import Source
from enginehouse.tasks.ifeval import IFEval
from enginehouse.tasks.instruction_checkers.scoring import loose_versions

SHARED_IFEVAL = (
    Path(__file__).resolve().parents[3] / "shared" / "data" / "ifeval" / "input_data.jsonl"
)

ROW = {
    "key": 7,
    "prompt": "Write one word without commas.",
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    "kwargs": [
        {"num_words": None, "relation": None},
        {"num_words": 2, "relation": "less than", "keywords": None},
    ],
}


def item(instructions):
    """An item with these (name, arguments) pairs."""
    return Item(
        id="1",
        data={
            "prompt": "?",
            "instruction_id_list": [name for name, _ in instructions],
            "kwargs": [arguments for _, arguments in instructions],
        },
    )


NO_COMMA = ("punctuation:no_comma", {})
TWO_BULLETS = ("detectable_format:number_bullet_lists", {"num_bullets": 2})


@pytest.fixture
def write(tmp_path):
    """Write rows as a JSONL file and give its path."""

    def write_rows(rows):
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return str(path)

    return write_rows


def test_a_users_file_in_the_hubs_form(write):
    """Null arguments are dropped, the digest is the file's, and a part is called a subset."""
    path = write([ROW])
    dataset = IFEval().load(data=path, seed=0)
    assert [entry.id for entry in dataset.items] == ["7"]
    assert dataset.items[0].data == {
        "prompt": ROW["prompt"],
        "instruction_id_list": ROW["instruction_id_list"],
        "kwargs": [{}, {"num_words": 2, "relation": "less than"}],
    }
    assert dataset.digest == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert dataset.full_size == 541
    assert dataset.is_subset


def test_the_real_file():
    """The original's file loads whole; every item can be asked and scored."""
    if not SHARED_IFEVAL.exists():
        pytest.skip("the IFEval prompts are not in ../shared/data")
    task = IFEval()
    dataset = task.load(data=str(SHARED_IFEVAL), seed=0)
    assert len(dataset.items) == 541
    assert not dataset.is_subset
    asked = task.ask(dataset.items[0])
    assert isinstance(asked, Generate)
    assert asked.prompt.messages[0].content == dataset.items[0].data["prompt"]
    assert asked.max_tokens == 1280
    scores = [task.score_text(entry, "") for entry in dataset.items]
    assert {score.outcome for score in scores} == {Outcome.WRONG}
    assert sum(score.measures["inst_level_loose_acc"].weight for score in scores) == 834
    assert sum(score.measures["inst_level_loose_acc"].value for score in scores) == 0


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"instruction_id_list": ["punctuation:no_coma", "x"]}, "punctuation:no_comma"),
        ({"kwargs": [{}, {"num_words": 2}]}, "length_constraints:number_words"),
        ({"kwargs": [{}, {"num_words": "2", "relation": "less than"}]}, "num_words"),
        ({"kwargs": [{}]}, "2 instructions, 1 kwargs"),
        ({"instruction_id_list": [], "kwargs": []}, "instruction_id_list"),
        ({"prompt": None}, "prompt"),
    ],
)
def test_broken_rows_name_the_prompt(write, change, complaint):
    """What no checker can check is refused before a model is asked."""
    with pytest.raises(DataError) as caught:
        IFEval().load(data=write([ROW | change]), seed=0)
    assert complaint in str(caught.value)
    assert "prompts.jsonl" in str(caught.value)


def test_a_key_that_occurs_twice(write):
    """Items are told apart by their keys."""
    with pytest.raises(DataError, match=r"prompt 7.* twice"):
        IFEval().load(data=write([ROW, ROW]), seed=0)


def test_a_torn_file(tmp_path):
    """A line that is no JSON is named."""
    path = tmp_path / "torn.jsonl"
    path.write_text(json.dumps(ROW) + '\n{"key": 8, "pro', "utf-8")
    with pytest.raises(DataError, match=r"torn\.jsonl.*2"):
        IFEval().load(data=str(path), seed=0)


def test_a_missing_file(tmp_path):
    """A file that is not there is named."""
    with pytest.raises(DataError, match=r"none\.jsonl"):
        IFEval().load(data=str(tmp_path / "none.jsonl"), seed=0)


def test_the_hub_is_the_default(write, monkeypatch):
    """Without data, and for hf:owner/name:file, the file comes from the hub."""
    wanted = []

    def fetch(reference):
        wanted.append(reference)
        content = Path(write([ROW])).read_bytes()
        return Source(content=content, name=reference, kind=".jsonl")

    monkeypatch.setattr("enginehouse.tasks.data.hub_source", fetch)
    dataset = IFEval().load(data=None, seed=0)
    assert dataset.source == IFEval().info.source
    assert dataset.licence == "Apache-2.0"
    IFEval().load(data="hf:someone/prompts:mine.jsonl", seed=0)
    assert wanted == [IFEval().info.source, "hf:someone/prompts:mine.jsonl"]


def test_an_unreachable_hub(monkeypatch, tmp_path):
    """Offline and not in the cache: the error says so and how to go on."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"(?s)google/IFEval.*`data`"):
        IFEval().load(data=None, seed=0)


def test_strict_and_loose():
    """Markdown and an introduction are forgiven by the loose measures only."""
    score = IFEval().score_text(item([NO_COMMA, TWO_BULLETS]), "Sure, here:\n* a\n* b")
    assert score.outcome is Outcome.WRONG
    assert score.measures == {
        "prompt_level_loose_acc": Measure(1.0),
        "inst_level_strict_acc": Measure(1.0, 2.0),
        "inst_level_loose_acc": Measure(2.0, 2.0),
    }
    assert score.answer == (
        "punctuation:no_comma: not followed; detectable_format:number_bullet_lists: followed"
    )


def test_all_followed():
    """Correct is prompt-level strict: every instruction is followed as it stands."""
    score = IFEval().score_text(item([NO_COMMA, TWO_BULLETS]), "* a\n* b")
    assert score.outcome is Outcome.CORRECT
    assert score.measures["inst_level_strict_acc"] == Measure(2.0, 2.0)


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_response_follows_nothing(text):
    """Not even an instruction to leave something out."""
    score = IFEval().score_text(item([NO_COMMA]), text)
    assert score.outcome is Outcome.WRONG
    assert score.measures["inst_level_loose_acc"] == Measure(0.0, 1.0)


def test_blank_loose_versions_follow_nothing():
    """A response of one line has no version without it that could follow."""
    score = IFEval().score_text(item([NO_COMMA]), "one, line")
    assert score.measures["inst_level_loose_acc"] == Measure(0.0, 1.0)


def test_loose_versions():
    """The original's eight: whole and without first, last or both lines, with and without `*`."""
    assert loose_versions("*a*\nb\n*c*") == [
        "*a*\nb\n*c*",
        "b\n*c*",
        "*a*\nb",
        "b",
        "a\nb\nc",
        "b\nc",
        "a\nb",
    ]
    assert loose_versions("one") == ["one", ""]
