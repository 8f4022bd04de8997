import hashlib
from collections import Counter
from importlib import resources

import pytest

from enginehouse.core.errors import DataError
from enginehouse.tasks.base import Generate, Measure, Outcome
from enginehouse.tasks.instruction_checkers import CHECKERS, SHORT_TEXT_CHECKERS, build_checker
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


# Answers to prompts of this task; langdetect takes many of them for other languages.
SHORT = {
    "en": [
        *("Pandas eat bamboo.", "Dogs are loyal animals.", "I am happy today.", "Do not run."),
        *("Coffee keeps me awake at night.", "Snow melts in spring.", "Bees make honey."),
        "An apple a day keeps the doctor away.",
    ],
    "de": ["Guten Abend.", "Guten Abend, willkommen!", "Ich mag frisches Brot."],
    "es": ["Bebo caf\u00e9 con leche.", "Tomo t\u00e9.", "Llueve."],
    "fr": ["Bonjour.", "Merci beaucoup.", "Bonjour \u00e0 tous !"],
}


def _language(language, text):
    name, arguments = "language:response_language", {"language": language}
    return build_checker(name, arguments, where="here", checkers=SHORT_TEXT_CHECKERS).follows(text)


@pytest.mark.parametrize(
    ("language", "text"), [(name, text) for name, texts in SHORT.items() for text in texts]
)
def test_a_short_sentence_may_be_in_its_language(language, text):
    """Detection on so little text is a guess, in capitals more than ever."""
    assert _language(language, text)
    if language == "en":
        for name, dressed in (("capital", text.upper()), ("lowercase", text.lower())):
            checker = build_checker(
                f"change_case:english_{name}", {}, where="here", checkers=SHORT_TEXT_CHECKERS
            )
            assert checker.follows(dressed)
            assert not checker.follows(text.swapcase())


def test_a_longer_text_must_be_in_its_language():
    """And a short one must not be plainly English where it should not."""
    english = "The sun rises in the east and sets in the west, as it has done for a long time."
    german = "Die Sonne geht im Osten auf und im Westen unter, wie schon seit langer Zeit."
    assert _language("en", english)
    assert _language("en", english.upper())
    assert _language("de", german)
    assert not _language("de", english)
    assert not _language("en", german)
    assert not _language("de", "The cat sleeps.")


def test_ifeval_stays_as_the_original():
    """The published figures have langdetect's verdict on every text."""
    checker = build_checker("language:response_language", {"language": "en"}, where="here")
    assert not checker.follows("Pandas eat bamboo.")
