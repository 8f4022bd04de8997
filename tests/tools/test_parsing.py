"""Calls in free text, as models write them."""

from __future__ import annotations

import time

import pytest

from enginehouse.tools.checking import decode_arguments
from enginehouse.tools.parsing import find_calls

NAMES = ("move", "say")
ONE = [("move", {"x": 1})]


def _found(text: str, *, alone: bool = False) -> list[tuple[str, object]]:
    found = find_calls(text, NAMES, alone=alone)
    return [(call.name, decode_arguments(call.arguments)) for call in found]


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "move", "arguments": {"x": 1}}',
        '<tool_call>{"name": "move", "arguments": {"x": 1}}</tool_call>',
        '<tool_call>\n{"name": "move", "arguments": {"x": 1}}',
        'Sure!\n```json\n{"name": "move", "parameters": {"x": 1}}\n```\nDone.',
        '```tool_call\n{"tool": "move", "params": {"x": 1}}```',
        'I will call {"name": "move", "arguments": {"x": 1}} now.',
        "{'name': 'move', 'arguments': {'x': 1,},}",
        '{"name": "move", "arguments": {"x": 1,}}',
        '{"name": "move", "arguments": "{\\"x\\": 1}"}',
        '{"type": "function", "function": {"name": "move", "arguments": {"x": 1}}}',
        '[{"name": "move", "arguments": {"x": 1}}]',
        '{"calls": [{"name": "move", "arguments": {"x": 1}}]}',
        '{"move": {"x": 1}}',
        "move(x=1)",
        "[move(x=1)]",
        "I call `move(x=1)` to do it.",
        "```python\nprint(move(x = 1))\n```",
        '<function=move>{"x": 1}</function>',
        '<think>{"name": "say", "arguments": {}}</think>{"name": "move", "arguments": {"x": 1}}',
        'It\'s easy: {"name": "move", "arguments": {"x": 1}}',
    ],
)
def test_one_call_is_found_however_it_is_written(text: str):
    """JSON, nearly JSON, tags, fences, amid words, Python."""
    assert _found(text) == ONE


@pytest.mark.parametrize(
    "text",
    [
        (
            '<tool_call>{"name": "move", "arguments": {"x": 1}}</tool_call>\n'
            '<tool_call>{"name": "say", "arguments": {"text": "a } b"}}</tool_call>'
        ),
        '[move(x=1), say(text="a } b")]',
        '{"name": "move", "arguments": {"x": 1}}\n{"name": "say", "arguments": {"text": "a } b"}}',
    ],
)
def test_several_calls_keep_their_order(text: str):
    """Brackets inside of texts end nothing."""
    assert _found(text) == [*ONE, ("say", {"text": "a } b"})]


def test_python_values_become_json():
    """Constants of either language, tuples as arrays, quotes of either kind."""
    assert _found("move(a=True, b=null, c=(1, 2), d='it\\'s', e={'f': None})") == [
        ("move", {"a": True, "b": None, "c": [1, 2], "d": "it's", "e": {"f": None}})
    ]
    assert _found("{'name': 'move', 'arguments': {'a': true, 'b': (1, 2)}}") == [
        ("move", {"a": True, "b": [1, 2]})
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I would move to x=1.",
        '{"x": 1}',
        "other(x=1)",
        "move(1)",
        "move(x=open('/etc/passwd'))",
        "move(x={1, 2})",
        '{"name": "Alice", "age": 3}',
        "{'name': 'move', 'arguments': {'x': ",
        "f(" * 5000,
        "[" * 50_000,
        "[" * 900 + "]" * 900,
        "{'" + '\\"' * 50_000 + ",}",
        "{" * 50_000,
        '{"name": "move", "arguments": ' + "[" * 20_000 + "]" * 20_000 + "}",
    ],
)
def test_what_is_no_call_gives_none(text: str):
    """Nothing is run, nothing is guessed, and nonsense costs no time to speak of."""
    begun = time.perf_counter()
    assert _found(text) == []
    assert time.perf_counter() - begun < 2.0


CALL = '{"name": "move", "arguments": {"x": 1}}'


@pytest.mark.parametrize(
    "text",
    [
        CALL,
        f"<tool_call>{CALL}</tool_call>",
        f"I will go: <tool_call>{CALL}</tool_call>",
        f"Sure!\n```json\n{CALL}\n```\nDone.",
        f"Sure!\n{CALL}\nDone.",
        '{\n  "name": "move",\n  "arguments": {"x": 1}\n}',
        "Sure.\n[move(x=1)]",
        "Sure.\n`move(x=1)`",
        f"<think>say(text='a')</think>{CALL}",
        f"I said say(text='a') before.\n{CALL}",
        '<function=move>{"x": 1}</function>',
    ],
)
def test_an_answer_that_consists_of_a_call_is_one(text: str):
    """Whole, tagged, fenced, or on lines of its own."""
    assert _found(text, alone=True) == ONE


def test_several_calls_on_lines_of_their_own_are_found():
    """In one list, or below one another."""
    both = [*ONE, ("say", {"text": "b"})]
    assert _found("Well:\n[move(x=1), say(text='b')]", alone=True) == both
    assert _found("Well:\nmove(x=1)\nsay(text='b')\nDone", alone=True) == both


@pytest.mark.parametrize(
    "text",
    [
        "You should not call move(x=1).",
        f"I called {CALL} before; now the answer is 5.",
        f"I called {CALL}",
        "move(x=1) a",
        "```python\nprint(move(x=1))\n```",
        f"<think>maybe <tool_call>{CALL}</tool_call> no",
        f"<think>maybe\n{CALL}",
    ],
)
def test_a_mention_is_no_call_where_words_will_do(text: str):
    """Where a call is required it counts, as there is no other way to read it."""
    assert _found(text, alone=True) == []
    assert _found(text) == ONE


def test_texts_keep_what_looks_like_code():
    """A comma before a bracket, and the constants of the other language."""
    assert _found('{"name": "move", "arguments": {"a": "b,]", "c": "d,\\",}"},}') == [
        ("move", {"a": "b,]", "c": 'd,",}'})
    ]
    assert _found("{'name': 'move', 'arguments': {'a': 'is it, true, no', 'b': true}}") == [
        ("move", {"a": "is it, true, no", "b": True})
    ]


@pytest.mark.parametrize(
    "text",
    [
        f"Open with {{ and close it.\n{CALL}",
        "".join(f"[{n}] " for n in range(50)) + CALL,
        "".join(f"move({n}) " for n in range(50)) + "move(x=1)",
    ],
)
def test_brackets_in_front_hide_no_call(text: str):
    """One that never closes, many citations, and many mentions without names."""
    assert _found(text) == ONE
