"""What a user's task asks a judge, and how the reply is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from enginehouse.core.errors import ConfigurationError, DataError, ScoringError
from enginehouse.tasks.base import JudgeCall, Outcome, is_judged
from enginehouse.tasks.custom import CustomTask, load_custom
from enginehouse.tasks.registry import load_task

RECORD = {"ask": "What is the capital of France?", "right": "Paris"}


def judged(folder: Path, **keys: object) -> CustomTask:
    """A task with one record, scored by a judge."""
    (folder / "items.jsonl").write_text(json.dumps(RECORD))
    path = folder / "task.yaml"
    values = {"name": "t", "data": "items.jsonl", "prompt": "{{ ask }}", "metric": "judge", **keys}
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return load_custom(path)


def asked(task: CustomTask, response: str = "It is Paris.") -> list[tuple[str, str]]:
    """The judge's turns about the first item."""
    (item,) = task.load(data=None, seed=0).items
    call = task.score_text(item, response)
    assert isinstance(call, JudgeCall)
    return [(message.role, message.content) for message in call.prompt.messages]


def verdict(task: CustomTask, reply: str) -> Outcome:
    """The outcome of a judge's reply."""
    (item,) = task.load(data=None, seed=0).items
    return task.score_judgement(item, reply).outcome


def test_a_judge_is_asked_in_our_own_words_by_default(tmp_path):
    """With the question, the answer, and the right one if there is one."""
    ((role, text),) = asked(judged(tmp_path, answer="right"))
    assert role == "user"
    assert all(part in text for part in (RECORD["ask"], "Right answer:\nParis", "It is Paris."))
    ((_, text),) = asked(judged(tmp_path))
    assert "Right answer" not in text


def test_a_task_may_ask_in_its_own_words(tmp_path):
    """Templates over the record, the question, the answer and the verdicts."""
    judge = {
        "prompt": "{{ asked }} | {{ response }} | {{ reference }} | {{ ask }} | {{ correct }}",
        "system": "Grade {{ right }}.",
        "correct": "A",
        "wrong": "B",
    }
    assert asked(judged(tmp_path, answer="right", judge=judge)) == [
        ("system", "Grade Paris."),
        ("user", f"{RECORD['ask']} | It is Paris. | Paris | {RECORD['ask']} | A"),
    ]


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        ("VERDICT: CORRECT", Outcome.CORRECT),
        ("It fits.\n**VERDICT:** correct.", Outcome.CORRECT),
        ("VERDICT:\nINCORRECT", Outcome.WRONG),
        ("VERDICT: CORRECT? No. VERDICT: INCORRECT\n", Outcome.WRONG),
    ],
)
def test_the_last_verdict_counts(tmp_path, reply, outcome):
    """Without case, emphasis and punctuation."""
    assert verdict(judged(tmp_path), reply) is outcome


@pytest.mark.parametrize("reply", ["", "It is right.", "VERDICT:", "VERDICT: PARTLY", "CORRECT"])
def test_what_is_no_verdict_is_no_score(tmp_path, reply):
    """It is never taken for a wrong answer."""
    with pytest.raises(ScoringError):
        verdict(judged(tmp_path), reply)


@pytest.mark.parametrize(
    "keys",
    [
        {"judge": {"correct": "yes", "wrong": "Yes."}},
        {"judge": {"prompt": "Is it right?"}},
        {"judge": {"prompt": "{{ response }", "promt": ""}},
        {"metric": "contains", "answer": "right", "judge": {}},
    ],
)
def test_a_wrong_definition_is_refused(tmp_path, keys):
    """Verdicts alike, a prompt without the answer, unknown keys, another metric."""
    with pytest.raises(ConfigurationError):
        judged(tmp_path, **keys)


def test_a_template_that_cannot_be_filled_in_is_found_when_loading(tmp_path):
    """Before anything is asked."""
    task = judged(tmp_path, judge={"prompt": "{{ response }} {{ nothing }}"})
    with pytest.raises(DataError):
        task.load(data=None, seed=0)


def test_only_such_tasks_are_judged(tmp_path):
    """And other prompts to the judge make another version."""
    task = judged(tmp_path)
    assert is_judged(task)
    assert task.info.kind == "generate"
    assert not is_judged(load_task("gsm8k"))
    assert not is_judged(judged(tmp_path, metric="contains", answer="right"))
    other = judged(tmp_path, judge={"prompt": "{{ response }}?"})
    assert other.info.version != task.info.version
