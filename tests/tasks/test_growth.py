"""What scores a model's text takes linear time, whatever the text repeats.

Checkers and tasks come from their registries, so that a new one is covered without being named
here. Arguments and items come from the shipped prompts and from what the tasks themselves read.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable
from importlib import resources

import pytest

import enginehouse.tasks
from enginehouse.tasks.base import Item
from enginehouse.tasks.instruction_checkers import CHECKERS, SHORT_TEXT_CHECKERS, build_checker
from enginehouse.tasks.metrics import MEANINGS, load_metric
from enginehouse.tasks.registry import TASKS
from enginehouse.testing.growth import assert_linear

# The marks of every format that something here looks for, and what stands between them.
# fmt: off
MARKERS = [
    "#", "#### ", "#### 1. a\n", "#### 1 = ", "\n", " ", "\t", " \n", "a", "A", "a ", "A. ", "1",
    "1,", "1 ", "1.", "1'", "1/", "1:", "-", "- a\n", "1e", "10^", "1^2", "1 2/3 ", "(", ")",
    "10,", "100 ", "100.", "100,", "0.", "9", "= 1 ", "is 1 ",
    "$", "\\", "\\boxed{", "\\frac{", "\\frac{1}{2}", "\\boxed{1} ", "{", "}", "{,}", "\\,",
    "\\text{", "*", "**", "***", "* a\n", "*a* ", "*\n", "\n\n", "******", "[", "]", "[a] ",
    "<<", ">>", "<<a>>", "```", "```json\n", '{"a":', '"', "'", "`", ",", ";", ".", ". ", "...",
    "!", "?", "P.S. ", "p.p.", "Answer", "answer: ", "answer is ", "Answer: A\n",
    "answer option ", "is ", "the correct ", "<answer>", "</answer>", "<answer>1</answer>",
    "<think>", "</think>", "<think>a</think>", "[THINK]", "<|channel|>", "<|channel|>final",
    "<|channel|>final<|message|>", "analysis", "assistantfinal", "Section 1 ", "SECTION ",
    "#### 1+1=2, ", "1+1=2, ", "and ", "answer\n", "correct option ", "\u662f", "\u662f1",
    "My answer is yes.", "\uff11", "\u00bd", "\u00b2",
]
# fmt: on

LONGEST = 20_000  # characters: there are thousands of combinations


def _prompts() -> list[dict]:
    shipped = resources.files("enginehouse.tasks").joinpath("instructions.jsonl").read_text()
    return [json.loads(line) for line in shipped.splitlines()]


def _arguments(name: str) -> dict:
    """The arguments with which a shipped prompt uses a checker."""
    return next(
        arguments
        for prompt in _prompts()
        for used, arguments in zip(prompt["instruction_id_list"], prompt["kwargs"], strict=True)
        if used == name
    )


def _repeated(marker: str):
    return lambda length: marker * (length // len(marker))


def _own_markers(arguments: dict) -> list[str]:
    """The texts among a checker's arguments, which it looks for."""
    values = [
        v for value in arguments.values() for v in (value if isinstance(value, list) else [value])
    ]
    return [text for value in values if isinstance(value, str) for text in (value, value + " ")]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CHECKERS))
@pytest.mark.parametrize("checkers", [CHECKERS, SHORT_TEXT_CHECKERS], ids=["ifeval", "short"])
def test_checkers(name, checkers):
    """Every instruction of IFEval, as the task instructions asks for it."""
    if checkers is SHORT_TEXT_CHECKERS and SHORT_TEXT_CHECKERS[name] is CHECKERS[name]:
        return
    arguments = _arguments(name)
    checker = build_checker(name, arguments, where="here", checkers=checkers)
    for marker in [*MARKERS, *_own_markers(arguments)]:
        assert_linear(checker.follows, _repeated(marker), longest=LONGEST)


def _extractors() -> dict[str, Callable[[str], object]]:
    """Every function of tasks and of reasoning that takes a text and needs nothing else."""
    found: dict[str, Callable[[str], object]] = {}
    modules = pkgutil.walk_packages(enginehouse.tasks.__path__, "enginehouse.tasks.")
    for module in (*(module.name for module in modules), "enginehouse.core.reasoning"):
        for name, function in vars(importlib.import_module(module)).items():
            home = getattr(function, "__module__", "")
            is_reader = home.startswith(("enginehouse.tasks.", "enginehouse.core.reasoning"))
            if inspect.isfunction(function) and is_reader and not name.startswith("_"):
                first, *others = inspect.signature(function).parameters.values() or [None]
                is_alone = all(other.default is not other.empty for other in others)
                if first is not None and first.name in ("text", "response") and is_alone:
                    found[name] = function
    return found


EXTRACTORS = _extractors()


def test_the_extractors_are_found():
    """Those that the tasks use today, at least."""
    known = {
        "strip_reasoning",
        "separate_reasoning",
        "final_number",
        "marked_number",
        "last_number",
        "answer_letter",
    }
    assert known | {"last_tagged", "boxed", "sentences", "loose_versions"} <= EXTRACTORS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(EXTRACTORS))
def test_extractors(name):
    """What reads an answer, or parts of one, off a text."""
    for marker in MARKERS:
        assert_linear(EXTRACTORS[name], _repeated(marker), longest=LONGEST)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({"exact_match", "contains", "number"} & MEANINGS.keys()))
def test_metrics(name, tmp_path):
    """A user's task may use them on any text."""
    judge = load_metric(name, folder=tmp_path)
    for marker in MARKERS:
        assert_linear(lambda text: judge(text, "18"), _repeated(marker), longest=LONGEST)


ITEM = Item(
    id="1",
    data={
        "question": "?",
        "answer": "18",
        "choices": ["1", "2", "3", "4"],
        "prompt": "?",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    },
)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS.names())
def test_tasks(name):
    """Every registered task that reads a written answer, end to end."""
    task = TASKS.load(name)()
    if task.info.kind == "generate":
        for marker in MARKERS:
            assert_linear(
                lambda text: task.score_text(ITEM, text), _repeated(marker), longest=LONGEST
            )
