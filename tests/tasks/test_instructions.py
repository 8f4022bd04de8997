import hashlib
from collections import Counter
from importlib import resources

import pytest

from enginehouse.core.errors import DataError
from enginehouse.tasks.base import Generate, Measure, Outcome
from enginehouse.tasks.instruction_checkers import CHECKERS
from enginehouse.tasks.instructions import Instructions


@pytest.fixture(scope="module")
def dataset():
    """The shipped prompts."""
    return Instructions().load(data=None, seed=0)


def test_the_prompts_are_shipped_and_complete(dataset):
    """All prompts come with the package, with licence and digest, and are no subset."""
    shipped = resources.files("enginehouse.tasks").joinpath("instructions.jsonl").read_bytes()
    assert len(dataset.items) == dataset.full_size == Instructions().info.size == 60
    assert not dataset.is_subset
    assert dataset.licence == "Apache-2.0"
    assert dataset.digest == hashlib.sha256(shipped).hexdigest()


def test_loading_is_deterministic(dataset):
    """Another seed gives the same items in the same order."""
    assert Instructions().load(data=None, seed=7) == dataset


def test_every_checker_is_used_twice(dataset):
    """Each of the 25 instructions occurs in at least two prompts."""
    used = Counter(name for item in dataset.items for name in item.data["instruction_id_list"])
    assert set(used) == set(CHECKERS)
    assert min(used.values()) >= 2


def test_the_first_prompts_cover_much(dataset):
    """A run limited to 15 items, as the demo's, meets more than half of the checkers."""
    first = {name for item in dataset.items[:15] for name in item.data["instruction_id_list"]}
    assert len(first) >= 15


def test_prompts_are_unique_and_short(dataset):
    """No prompt occurs twice, and none is long."""
    prompts = [item.data["prompt"] for item in dataset.items]
    assert len(set(prompts)) == len(prompts)
    assert max(map(len, prompts)) < 250


def test_asking(dataset):
    """A prompt is one user turn with room for a short answer."""
    asked = Instructions().ask(dataset.items[0])
    assert isinstance(asked, Generate)
    assert [message.role for message in asked.prompt.messages] == ["user"]
    assert asked.prompt.messages[0].content == dataset.items[0].data["prompt"]
    assert asked.max_tokens == 256


def test_scoring(dataset):
    """A followed prompt is correct; one followed in part only is wrong and measured so."""
    item = dataset.items[1]
    assert item.data["instruction_id_list"] == [
        "keywords:existence",
        "length_constraints:number_sentences",
    ]
    good = Instructions().score_text(item, "Bees make honey from flowers.")
    assert good.outcome is Outcome.CORRECT
    assert good.measures["inst_level_strict_acc"] == Measure(2.0, 2.0)
    bad = Instructions().score_text(item, "Bees make wax.")
    assert bad.outcome is Outcome.WRONG
    assert bad.measures["inst_level_strict_acc"] == Measure(1.0, 2.0)
    assert bad.answer == (
        "keywords:existence: not followed; length_constraints:number_sentences: followed"
    )


def test_foreign_data_is_refused():
    """The task is its prompts: other data belong to the task ifeval."""
    with pytest.raises(DataError, match="ifeval"):
        Instructions().load(data="my.jsonl", seed=0)
