from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from collections import Counter

import msgspec
import pytest
import pytest_asyncio
from tests.support import SUPPORT

from enginehouse.core.errors import (
    ConfigurationError,
    DataError,
    ScoringError,
    ScoringTimeoutError,
    UnknownNameError,
)
from enginehouse.evaluation.scoring_processes import ScoringProcesses
from enginehouse.processes.sandbox import find_sandbox
from enginehouse.tasks.base import Item, Measure, Outcome, Score, ScoringCall
from enginehouse.tasks.reasoning_gym import EXECUTING, LEFT_OUT, ReasoningGym, last_tagged

needed = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="reasoning_gym is not installed"
)


together = pytest.mark.asyncio(loop_scope="module")
SIZE = 2  # of every data set here, so that they share the process that scores


@pytest.fixture(scope="module")
def task() -> ReasoningGym:
    """Importing the package takes seconds, so it is done once."""
    return ReasoningGym("chain_sum", size=SIZE)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def score():
    """As in the other files, with processes that all tests here share."""
    processes = ScoringProcesses()

    async def scored(task: ReasoningGym, item: Item, text: str) -> Score:
        score = task.score_text(item, text)
        return await processes.score(score) if isinstance(score, ScoringCall) else score

    yield scored
    await processes.close()


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


@pytest.mark.slow
@needed
@together
async def test_the_packages_scorer_decides(task, item, score):
    """1.0 is correct; the raw score is a measure; the last tagged answer counts."""
    right = item.data["answer"]
    result = await score(task, item, f"<answer>0</answer> no: <answer> {right}\n</answer>")
    assert result.outcome is Outcome.CORRECT
    assert result.measures == {"score": Measure(1.0)}
    assert result.answer == right
    result = await score(task, item, f"<answer>it is {right}</answer>")
    assert result.outcome is Outcome.WRONG
    assert 0 < result.measures["score"].value < 1
    assert "reasoning_gym" not in sys.modules  # nothing that it prints can reach our output


@needed
@pytest.mark.parametrize("text", ["5", "<answer>5", ""])
def test_an_untagged_answer_is_unparsable(task, item, text):
    """The question says how to mark the answer; no program is asked."""
    score = task.score_text(item, text)
    assert score.outcome is Outcome.UNPARSABLE
    assert score.measures == {"score": Measure(0.0)}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>1</answer><answer> 2\n</answer>", "2"),
        ("<answer>1<answer>2</answer>", "1<answer>2"),
        ("</answer><answer>1", None),
        ("<answer>1</answer><answer>", "1"),
        ("<answer>" * 20_000 + "</answer>" * 20_000, "<answer>" * 19_999),
    ],
)
def test_what_is_tagged(text, answer):
    """As the package's own pattern finds it, in time that grows with the text only."""
    assert last_tagged(text) == answer


@needed
@pytest.mark.slow
@together
async def test_a_scorer_that_raises_could_not_read_the_answer(first_items, score):
    """Some of the package's scorers do, prime_factorization's on words for one."""
    result = await score(*first_items[RAISING], "<answer>two and three</answer>")
    assert result.outcome is Outcome.UNPARSABLE
    assert result.measures == {"score": Measure(0.0)}
    assert result.answer == "two and three"


@needed
@pytest.mark.slow
@together
async def test_scoring_without_loading_first(item, score):
    """A resumed run may score with a fresh object: the item alone is enough."""
    task = ReasoningGym("chain_sum", size=SIZE)
    result = await score(task, item, f"<answer>{item.data['answer']}</answer>")
    assert result.outcome is Outcome.CORRECT


@needed
@pytest.mark.slow
@together
async def test_another_question_than_the_one_asked_is_not_scored(task, item, score):
    """Another version of the package may generate others from the same seed."""
    data = {**item.data, "question": "What is 1 + 1?"}
    with pytest.raises(ScoringError, match="another question"):
        await score(task, Item(id=item.id, data=data), "<answer>2</answer>")


RAISING = "prime_factorization"


@pytest.fixture(scope="module")
def first_items() -> dict[str, tuple[ReasoningGym, Item]]:
    """A task and its first item, of RAISING and of every data set that executes answers."""
    program = SUPPORT / "first_questions.py"
    done = subprocess.run(
        [sys.executable, "-P", str(program), RAISING, *sorted(EXECUTING)],
        env=os.environ | {"PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        name: (ReasoningGym(name, size=SIZE), Item(id="0-0", data={**entry, "seed": 0, "index": 0}))
        for name, entry in json.loads(done.stdout).items()
    }


@needed
@pytest.mark.slow
@together
async def test_what_an_answer_executes_reaches_nothing(first_items, score, tmp_path, monkeypatch):
    """Answers that are Python: they get no file, no connection and no secret, and they end."""
    executing = {name: first_items[name] for name in EXECUTING}
    if find_sandbox().problem:
        pytest.skip("there is no sandbox on this machine, which a run says")
    monkeypatch.setenv("HF_TOKEN", "secret-of-this-test")
    secret = tmp_path / "secret"
    secret.touch()
    python = "__import__('os')"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        port = server.getsockname()[1]
        outward = (
            f"__import__('pathlib').Path({str(tmp_path / 'new')!r}).touch()",
            f"__import__('socket').create_connection(('127.0.0.1', {port}))",
        )
        # What they see shows in the status of the process that they end.
        inward = tuple(
            f"{python}._exit(41 if {seen} else 40)"
            for seen in (
                f"'HF_TOKEN' in {python}.environ",
                f"{python}.path.exists('/proc/{os.getpid()}/environ')",
                f"{python}.path.exists({str(secret)!r})",
                f"{python}.path.exists('/etc/shadow')",
            )
        )
        asked = [(name, attack) for name in executing for attack in (*outward, *inward)]
        results = await asyncio.gather(
            *(score(*executing[name], f"<answer>{attack}</answer>") for name, attack in asked),
            return_exceptions=True,
        )
        with pytest.raises(BlockingIOError):
            server.accept()
    assert list(tmp_path.iterdir()) == [secret]
    executed = Counter()
    for (name, attack), result in zip(asked, results, strict=True):
        if isinstance(result, ScoringError):
            assert "ended its process with status 40" in str(result)
            executed[name] += 1
        else:
            assert result.outcome is not Outcome.CORRECT, (name, attack)
    # Every one of them is executed indeed.
    assert executed.keys() == EXECUTING


@needed
@pytest.mark.slow
@together
async def test_an_answer_that_never_ends_has_a_limit(first_items):
    """The others are scored meanwhile, by processes of their own."""
    task, item = first_items["spiral_matrix"]
    calls = [
        task.score_text(item, f"<answer>{answer}</answer>")
        for answer in ("9**9**9**9", item.data["answer"])
    ]
    program = msgspec.structs.replace(calls[0].program, seconds=1.0)
    processes = ScoringProcesses()
    try:
        endless, right = await asyncio.gather(
            *(processes.score(msgspec.structs.replace(call, program=program)) for call in calls),
            return_exceptions=True,
        )
    finally:
        await processes.close()
    assert isinstance(endless, ScoringTimeoutError)
    assert right.outcome is Outcome.CORRECT


@needed
@pytest.mark.slow
def test_scorers_that_accept_wrong_answers_are_left_out():
    """Every data set's scorer was tried; those that accept a wrong answer are refused."""
    survey = SUPPORT / "survey_scorers.py"
    done = subprocess.run(
        [sys.executable, "-P", str(survey)], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    accepting = {name for name, facts in found.items() if facts["accepted"]}
    assert accepting == LEFT_OUT.keys() - {"composite"}
    assert {name for name, facts in found.items() if facts["own"] is False} == set()
    without_an_answer = {name for name, facts in found.items() if facts["own"] is None}
    assert without_an_answer == {
        "boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour",
    }  # fmt: skip


@needed
@pytest.mark.parametrize("name", sorted(LEFT_OUT))
def test_what_is_left_out_is_refused_with_the_reason(name):
    """Before anything is generated."""
    with pytest.raises(ConfigurationError, match=re.escape(LEFT_OUT[name])):
        ReasoningGym(name)


@needed
def test_the_question_says_how_to_answer(task, item):
    """One turn: the question, then the instruction."""
    (turn,) = task.ask(item).prompt.messages
    assert turn.content.startswith(item.data["question"])
    assert "<answer>" in turn.content


@needed
@pytest.mark.slow
def test_wrong_uses_are_told():
    """Data are generated; names are known; a generator's own failure is shown."""
    with pytest.raises(ConfigurationError, match="no data"):
        ReasoningGym("chain_sum").load(data="a.csv", seed=0)
    with pytest.raises(UnknownNameError, match="'chain_sum'"):
        ReasoningGym("chainsum")
    with pytest.raises(DataError, match="-1 questions"):
        ReasoningGym("chain_sum", size=-1).load(data=None, seed=0)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    """It is optional."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install"):
        ReasoningGym("chain_sum")
