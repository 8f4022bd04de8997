"""BFCL's questions as tools, and its scoring beside the original's."""

from __future__ import annotations

import copy
import json
import random
import sys
import types
from pathlib import Path

import pytest

from enginehouse.core.errors import DataError
from enginehouse.provisioning.packages import package_file
from enginehouse.store.layout import Layout
from enginehouse.tasks.base import Outcome, ToolTask
from enginehouse.tasks.bfcl import PACKAGE, Multiple, SimplePython
from enginehouse.tasks.bfcl_scoring import matches
from enginehouse.tools import CheckedCall
from enginehouse.tools.specification import tool_specs

QUESTION = {
    "id": "multiple_0",
    "question": [[{"role": "user", "content": "How far is (3, 4) from (0, 0)?"}]],
    "function": [
        {
            "name": "math.hypot",
            "description": "The distance.",
            "parameters": {
                "type": "dict",
                "properties": {
                    "x": {"type": "float", "description": "First."},
                    "y": {"type": "integer", "description": "Second.", "optional": True},
                    "labels": {"type": "tuple", "items": {"type": "any"}},
                },
                "required": ["x"],
            },
        },
        {
            "name": "math_hypot",
            "description": "Another.",
            "parameters": {"type": "dict", "properties": {}, "required": []},
        },
    ],
}
ANSWER = {
    "id": "multiple_0",
    "ground_truth": [{"math.hypot": {"x": [3.0], "y": [4], "labels": ["", ["a"]]}}],
}


def _load(tmp_path: Path, question=QUESTION, answer=ANSWER):
    (tmp_path / "possible_answer").mkdir()
    (tmp_path / "BFCL_v4_multiple.json").write_text(json.dumps(question) + "\n")
    (tmp_path / "possible_answer/BFCL_v4_multiple.json").write_text(json.dumps(answer) + "\n")
    return Multiple().load(data=str(tmp_path / "BFCL_v4_multiple.json"), seed=0)


def _call(name: str, **arguments: object) -> CheckedCall:
    return CheckedCall(id="1", name=name, arguments=arguments)


def test_an_item_is_asked_with_tools_that_the_wire_takes(tmp_path):
    """Dots and types are converted as the original does; names that then collide stay apart."""
    asked = Multiple().ask(_load(tmp_path).items[0])
    assert (asked.choice, asked.max_calls) == ("required", 1)
    first, second = tool_specs(asked.tools)
    assert (first.name, second.name) == ("math_hypot", "math_hypot_")
    assert first.parameters == {
        "type": "object",
        "properties": {
            "x": {"type": "number", "description": "First. This is a float type value."},
            "y": {"type": "integer", "description": "Second."},
            "labels": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["x"],
    }


def test_a_call_is_scored_under_the_names_of_the_data(tmp_path):
    """The right function with a right value is correct; the other one of nearly its name is not."""
    (item,) = _load(tmp_path).items
    task = Multiple()
    assert isinstance(task, ToolTask)
    right = task.score_calls(item, [_call("math_hypot", x=3, y=4)])
    assert right.outcome is Outcome.CORRECT
    for wrong in (
        [_call("math_hypot", x=3, y=5)],
        [_call("math_hypot", x=3)],
        [_call("math_hypot_")],
        [],
        [_call("math_hypot", x=3, y=4)] * 2,
    ):
        assert task.score_calls(item, wrong).outcome is Outcome.WRONG


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (QUESTION, ANSWER | {"id": "multiple_1"}),
        (QUESTION, ANSWER | {"ground_truth": [{"other": {}}]}),
        (QUESTION, ANSWER | {"ground_truth": ANSWER["ground_truth"] * 2}),
        (QUESTION | {"question": QUESTION["question"] * 2}, ANSWER),
    ],
)
def test_data_of_another_kind_are_refused(tmp_path, question, answer):
    """The line is named."""
    with pytest.raises(DataError, match="line 1"):
        _load(tmp_path, question, answer)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory):
    """The original's checker, out of its wheel, without what it imports for other languages."""
    home = tmp_path_factory.mktemp("home")
    layout = Layout(cache=home / "cache", state=home / "state", config=home / "config")
    source = package_file(
        PACKAGE,
        member="bfcl_eval/eval_checker/ast_eval/ast_checker.py",
        sha256="2aae7a68461a8f76c0be3894c8901b66b56967a1989d3ab066051e3fb97f1538",
        layout=layout,
    ).read_text()
    python = types.SimpleNamespace(PYTHON="python", JAVA="java", JAVASCRIPT="javascript")
    plain = types.SimpleNamespace(underscore_to_dot=False)
    stubs = {
        "bfcl_eval.constants.enums": {"Language": python},
        "bfcl_eval.constants.model_config": {"MODEL_CONFIG_MAPPING": {"m": plain}},
        "bfcl_eval.constants.type_mappings": {"JAVA_TYPE_CONVERSION": 0, "JS_TYPE_CONVERSION": 0},
    }
    converters = "bfcl_eval.eval_checker.ast_eval.type_convertor"
    for language in ("java", "js"):
        stubs[f"{converters}.{language}_type_converter"] = {f"{language}_type_converter": 0}
    with pytest.MonkeyPatch.context() as patch:
        for name, values in stubs.items():
            module = types.ModuleType(name)
            vars(module).update(values)
            patch.setitem(sys.modules, name, module)
        namespace: dict[str, object] = {}
        exec(compile(source, "ast_checker.py", "exec"), namespace)
    checker = namespace["simple_function_checker"]

    def check(function, name, arguments, answers) -> bool:
        answer = {function["name"]: answers}
        try:
            found = checker(function, {name: arguments}, answer, "python", "m")  # type: ignore[operator]
        except (TypeError, AttributeError, KeyError):
            return False  # it breaks down over values of a kind that it does not expect
        return bool(found["valid"])

    return check


VALUES = (0, 1, 10, -3, 0.5, 1.0, True, False, "", "Paris", "x", [], [1, 2], ["a"], [[1]])
MORE = ([1.0], [True], {}, {"a": 1}, [{"a": 1}], [{}], None)


def _mutated(value, rng: random.Random):
    """A value that is near, or something else."""
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice((*VALUES, *MORE))
    if isinstance(value, str):
        return rng.choice((value.upper(), f" {value}. ", value.replace("a", "_a"), value + "x"))
    if isinstance(value, bool | int | float):
        return rng.choice((value + 1, float(value), int(value), str(value), bool(value)))
    if isinstance(value, list):
        return rng.choice((value[::-1], value[:-1], [_mutated(v, rng) for v in value], [value]))
    if isinstance(value, dict):
        changed = {k: _mutated(v, rng) if rng.random() < 0.3 else v for k, v in value.items()}
        if changed and rng.random() < 0.3:
            changed.pop(rng.choice(list(changed)))
        return changed | ({"extra": 1} if rng.random() < 0.1 else {})
    return value


def _picked(answer, rng: random.Random):
    """A value as a model would give it: of a dict's alternatives one each."""
    if isinstance(answer, dict):
        return {k: _picked(rng.choice(v), rng) for k, v in answer.items() if isinstance(v, list)}
    if isinstance(answer, list):
        return [_picked(v, rng) if isinstance(v, dict) else v for v in answer]
    return answer


def _generated(function, answers, rng: random.Random):
    arguments = {}
    for name, allowed in answers.items():
        value = copy.deepcopy(_picked(rng.choice(allowed), rng))
        if value == "" and rng.random() < 0.8:
            continue
        arguments[name] = _mutated(value, rng) if rng.random() < 0.25 else value
    if rng.random() < 0.1:
        arguments[rng.choice(list(function["parameters"]["properties"]))] = rng.choice(VALUES)
    if arguments and rng.random() < 0.1:
        arguments.pop(rng.choice(list(arguments)))
    return arguments


@pytest.mark.slow
def test_scores_are_the_originals(original, monkeypatch, tmp_path):
    """Every item of both tasks, 16 calls each, near the answers: right and wrong are the same."""
    rng = random.Random(0)
    verdicts = {True: 0, False: 0}
    for task in (SimplePython(), Multiple()):
        data = task.load(data=None, seed=0)
        assert len(data.items) == data.full_size == task.size
        for item in data.items:
            tool_specs(task.ask(item).tools)
            ((expected, answers),) = item.data["answer"].items()
            function = next(f for f in item.data["functions"] if f["name"] == expected)
            for _ in range(16):
                arguments = _generated(function, answers, rng)
                name = expected if rng.random() < 0.97 else "other"
                ours = _ours(function, name, arguments, answers)
                theirs = original(function, name, arguments, answers)
                assert ours == theirs, (item.id, name, arguments, answers)
                verdicts[ours] += 1
    assert min(verdicts.values()) > 1200, verdicts


def _ours(function, name, arguments, answers) -> bool:
    return matches(function, name=name, arguments=arguments, answers=answers)


SHAPES = (
    ("array", "integer", [[1, 2], ""]),
    ("array", "string", ["", ["New York"]]),
    ("array", "dict", [[{"a": [1], "b": ["x", ""]}], ""]),
    ("array", "array", [[[1, 2], [3]]]),
    ("array", "float", [[1, 2]]),
    ("tuple", "float", [[1.5, 2.0]]),
    ("dict", None, ["", {"a": [1, 2], "b": ["New York", ""]}]),
    ("dict", None, ["variable"]),
    ("string", None, ["San Francisco, CA", "SF"]),
    ("string", None, [""]),
    ("any", None, ["x", 3]),
    ("integer", None, ["n", 5]),
    ("integer", None, [5, ""]),
    ("float", None, [5, 7.5]),
    ("boolean", None, [True, ""]),
)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}-{s[1]}-{s[2]}")
def test_oddities_are_the_originals(original, shape):
    """Optional parameters, variables, empty lists, nested and unequal types: value by value."""
    kind, inner, allowed = shape
    parameter = {"type": kind} | ({"items": {"type": inner}} if inner else {})
    function = {
        "name": "f",
        "parameters": {"type": "dict", "properties": {"p": parameter}, "required": []},
    }
    rng = random.Random(1)
    near = [_picked(answer, rng) for answer in allowed]
    values = [*VALUES, *MORE, *near, *(_mutated(v, rng) for v in near for _ in range(30))]
    for arguments in ({}, {"q": 1}, *({"p": value} for value in values)):
        ours = _ours(function, "f", arguments, {"p": allowed})
        assert ours == original(function, "f", arguments, {"p": allowed}), arguments
