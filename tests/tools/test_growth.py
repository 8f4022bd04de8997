"""Reading and checking calls takes linear time, whatever a model repeats."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest

from enginehouse.core.reasoning import strip_reasoning
from enginehouse.testing.growth import assert_linear
from enginehouse.tools.constraint import read_answer
from enginehouse.tools.markup import leftover_markup
from enginehouse.tools.parsing import find_calls
from enginehouse.tools.specification import ToolSpec

NAMES = ("f", "move")
LONGEST = 25_000  # well below the length at which find_calls cuts a text off
CALL = '{"name": "f", "arguments": {"x": 1}}'
# fmt: off
MARKERS = [
    "f(", "f()", "f(x=", "f(x=1)", "f(x=1) ", "f(x=[", "f(f(", "f(1)", "f(x={", "f('", 'f("',
    "f-", "f.", "f ", "a-", "a.", "1", "-", "not ", "lambda:", "(", ")", "()", "[", "]", "[]",
    "[a]", "[1,", "{", "}", "{}", "{a}", '{"a":', '{"a":1}', '{"name":', "{'", "'", '"', "\\",
    '\\"', ",", ",}", ", ", "true", "true,", "<tool_call>", "</tool_call>", "<tool_call>{",
    "<function=", "<function=f>", "<function=f>{}</function>", "```", "```json\n", "```json\n{",
    "<think>", "</think>", "\n", " ", CALL, CALL + "\n", CALL + " a\n",
    f"<tool_call>{CALL}</tool_call>", f"```\n{CALL}\n```\n", '{"calls": [',
    f'{{"calls": [{CALL}]}}', "functools[", "[TOOL_CALLS]", "f(x=1", "f(x=1)\n",
]
# fmt: on


def _repeated(marker: str):
    return lambda length: marker * (length // len(marker))


@pytest.mark.slow
@pytest.mark.parametrize("alone", [True, False])
def test_finding_calls(alone):
    """Brackets that never close, calls in calls, tags, fences, quotes."""

    def find(text: str) -> None:
        find_calls(text, NAMES, alone=alone)

    for marker in MARKERS:
        assert_linear(find, _repeated(marker), longest=LONGEST)
        assert_linear(
            find, lambda length, m=marker: f"{m * (length // len(m))}\n{CALL}", longest=LONGEST
        )


@pytest.mark.parametrize("read", [leftover_markup, strip_reasoning])
def test_reading_around_calls(read):
    """Marks that a server's parser has left over, and thoughts."""
    for marker in MARKERS:
        assert_linear(read, _repeated(marker))


def test_constrained_answers():
    """An engine may ignore the constraint."""

    def read(text: str) -> None:
        with suppress(ValueError):
            read_answer(text)

    for marker in MARKERS:
        assert_linear(read, _repeated(marker))


@pytest.mark.parametrize(
    ("schema", "item"),
    [
        ({"uniqueItems": True}, lambda n: {"x": n}),
        ({"uniqueItems": True}, lambda n: [n, "a"] if n % 2 else ["a", n]),
        ({"uniqueItems": True}, lambda n: n if n % 2 else str(n)),
        ({"items": {"type": "integer"}}, lambda n: "a"),
        ({"items": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}, lambda n: {"x": n}),
        ({"items": {"enum": ["a", "b"]}}, lambda n: {"x": n}),
        ({"contains": {"type": "integer"}, "unevaluatedItems": False}, lambda n: n),
    ],
)
def test_checking_arguments(schema, item):
    """Schemas whose keywords compare items with one another, on lists as long as can be."""
    tool = ToolSpec(
        name="f", description="", parameters={"type": "object", "properties": {"a": schema}}
    )

    def check(text: str) -> None:
        tool.check({"a": json.loads(text)})

    assert_linear(
        check, lambda length: json.dumps([item(n) for n in range(length // 10)]), longest=100_000
    )


def test_arguments_that_are_too_many_are_refused():
    """What some keywords compare pairwise is bounded."""
    tool = ToolSpec(name="f", description="", parameters={"type": "object"})
    assert tool.check({"a": list(range(5000))}) is None
    assert "more than 10,000 values" in (tool.check({"a": list(range(20_000))}) or "")
