from __future__ import annotations

import importlib.util

import pytest

from enginehouse.core.errors import ConfigurationError, DataError, UnknownNameError
from enginehouse.tasks.base import Item, Measure, Outcome
from enginehouse.tasks.reasoning_gym import ReasoningGym

needed = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="reasoning_gym is not installed"
)


@pytest.fixture(scope="module")
def task() -> ReasoningGym:
    """Generating takes seconds (the package's import), so that once must do."""
    return ReasoningGym("chain_sum", size=2)


@pytest.fixture(scope="module")
def item(task: ReasoningGym) -> Item:
    """Its first question."""
    return task.load(data=None, seed=0).items[0]


@needed
@pytest.mark.slow
def test_items_depend_on_the_seed_only():
    """Pinned, for a generator that walks over sets, whose order depends on the process."""
    data = ReasoningGym("isomorphic_strings", size=5).load(data=None, seed=3)
    assert [item.id for item in data.items] == ["3-0", "3-1", "3-2", "3-3", "3-4"]
    assert data.digest == "e941518d6dec0874f7073e84fc71618fb24fb63e2f720a4301ac458599d5f3d0"
    assert not data.is_subset


@needed
def test_the_packages_scorer_decides(task, item):
    """1.0 is correct; the raw score is a measure; the last tagged answer counts."""
    right = item.data["answer"]
    score = task.score_text(item, f"<answer>0</answer> no: <answer> {right}\n</answer>")
    assert score.outcome is Outcome.CORRECT
    assert score.measures == {"score": Measure(1.0)}
    assert score.answer == right
    score = task.score_text(item, f"<answer>it is {right}</answer>")
    assert score.outcome is Outcome.WRONG
    assert 0 < score.measures["score"].value < 1


@needed
@pytest.mark.parametrize("text", ["5", "<answer>5", "<think><answer>5</answer></think>", ""])
def test_an_untagged_answer_is_unparsable(task, item, text):
    """The question says how to mark the answer."""
    score = task.score_text(item, text)
    assert score.outcome is Outcome.UNPARSABLE
    assert score.measures == {"score": Measure(0.0)}


@needed
def test_a_scorer_that_raises_could_not_read_the_answer(task, item, monkeypatch):
    """Some of the package's scorers do, prime_factorization's on words for one."""
    from reasoning_gym.arithmetic.chain_sum import ChainSumDataset

    def raises(self, answer, entry):
        raise ValueError(answer)

    monkeypatch.setattr(ChainSumDataset, "score_answer", raises)
    score = task.score_text(item, "<answer>two and three</answer>")
    assert score.outcome is Outcome.UNPARSABLE
    assert score.answer == "two and three"


@needed
@pytest.mark.slow
def test_scoring_without_loading_first(item):
    """A resumed run may score with a fresh object: the item alone is enough."""
    score = ReasoningGym("chain_sum", size=2).score_text(
        item, f"<answer>{item.data['answer']}</answer>"
    )
    assert score.outcome is Outcome.CORRECT


@needed
def test_the_question_says_how_to_answer(task, item):
    """One turn: the question, then the instruction."""
    (turn,) = task.ask(item).prompt.messages
    assert turn.content.startswith(item.data["question"])
    assert "<answer>" in turn.content


@needed
@pytest.mark.slow
def test_wrong_uses_are_told():
    """Data are generated; `composite` needs options; a generator's own failure is shown."""
    with pytest.raises(ConfigurationError, match="takes no data"):
        ReasoningGym("chain_sum").load(data="a.csv", seed=0)
    with pytest.raises(UnknownNameError):
        ReasoningGym("composite")
    with pytest.raises(DataError, match="cannot generate -1 questions"):
        ReasoningGym("chain_sum", size=-1).load(data=None, seed=0)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    """It is optional."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"not installed(.|\n)*pip install"):
        ReasoningGym("chain_sum")
