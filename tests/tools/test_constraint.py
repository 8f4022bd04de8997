"""The schema of an answer with calls."""

from __future__ import annotations

import json

import jsonschema
import pytest
from pydantic import BaseModel

from enginehouse.tools import ToolSpec
from enginehouse.tools.constraint import answer_schema, read_answer


class Node(BaseModel):
    """A tree."""

    name: str
    children: list[Node] = []


def plant(tree: Node) -> None:
    """Plant a tree."""


MOVE = ToolSpec.from_schema(
    {
        "type": "object",
        "properties": {
            "x": {"type": "integer", "description": "where", "default": 0, "multipleOf": 2},
            "description": {"type": "string", "pattern": "a+", "maxLength": 3, "format": "email"},
            "free": {"type": "object"},
        },
        "required": ["x"],
    },
    name="move",
)
SAY = ToolSpec.from_schema({"type": "object", "properties": {"t": {"const": "hi"}}}, name="say")


def _allows(schema, answer) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(answer)


def test_one_call_is_the_whole_answer():
    """The name tells the tools apart, and each has its own arguments, with no further keys."""
    schema = answer_schema([MOVE, SAY], optional=False, max_calls=1)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert _allows(schema, {"name": "move", "arguments": {"x": 2}})
    assert _allows(schema, {"name": "say", "arguments": {"t": "hi"}})
    assert not _allows(schema, {"name": "say", "arguments": {"x": 2}})
    assert not _allows(schema, {"name": "move", "arguments": {"x": 2, "z": 1}})
    assert not _allows(schema, {"name": "none", "answer": "no"})


def test_several_calls_are_a_bounded_list():
    """At least one, at most as many as may be made."""
    schema = answer_schema([SAY], optional=False, max_calls=2)
    call = {"name": "say", "arguments": {}}
    assert not _allows(schema, {"calls": []})
    assert _allows(schema, {"calls": [call, call]})
    assert not _allows(schema, {"calls": [call] * 3})


@pytest.mark.parametrize("max_calls", [1, 3])
def test_words_are_allowed_where_calls_are_optional(max_calls: int):
    """The name "none", which no tool can have, stands for them."""
    schema = answer_schema([MOVE, SAY], optional=True, max_calls=max_calls)
    assert _allows(schema, {"name": "none", "answer": "It is noon."})
    assert read_answer('{"name": "none", "answer": "It is noon."}') == "It is noon."


def test_what_constrained_decoding_cannot_take_is_left_out():
    """Keywords go, properties of the same name stay; a free object stays free."""
    schema = answer_schema([MOVE], optional=False, max_calls=1)
    arguments = schema["properties"]["arguments"]["properties"]
    assert arguments["x"] == {"type": "integer"}
    assert arguments["description"] == {"type": "string", "maxLength": 3}
    assert arguments["free"] == {"type": "object"}


def test_what_one_engine_refuses_is_written_for_all():
    """Branches may overlap, and no pattern looks around."""
    parameters = {
        "type": "object",
        "properties": {
            "n": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
            "both": {"oneOf": [{"type": "integer"}], "anyOf": [{"type": "number"}]},
            "ahead": {"type": "string", "pattern": "^(?=a)a"},
            "behind": {"type": "string", "pattern": "(?<!a)b"},
            "plain": {"type": "string", "pattern": "^(?:a|b)$"},
        },
    }
    tool = ToolSpec.from_schema(parameters, name="f")
    schema = answer_schema([tool], optional=False, max_calls=1)
    assert schema["properties"]["arguments"]["properties"] == {
        "n": {"anyOf": [{"type": "integer"}, {"type": "number"}]},
        "both": parameters["properties"]["both"],
        "ahead": {"type": "string"},
        "behind": {"type": "string"},
        "plain": parameters["properties"]["plain"],
    }


def test_references_still_lead_somewhere():
    """A recursive schema moves to the root under its tool's name, as do those of two tools."""
    tools = [ToolSpec.of(plant), ToolSpec.from_function(plant, name="plant_again")]
    schema = answer_schema(tools, optional=False, max_calls=2)
    tree = {"name": "a", "children": [{"name": "b", "children": []}]}
    for tool in tools:
        assert _allows(schema, {"calls": [{"name": tool.name, "arguments": {"tree": tree}}]})
    wrong = {"name": "a", "children": [{"title": "b"}]}
    assert not _allows(schema, {"calls": [{"name": "plant", "arguments": {"tree": wrong}}]})


def test_an_engine_that_ignores_the_constraint_is_found_out():
    """Whatever is not the asked-for JSON is an error that says so."""
    for text in ("", "Paris", "[1]", '{"city": "Rome"}', '{"calls": 3}', "[" * 100_000):
        with pytest.raises(ValueError, match=r"."):
            read_answer(text)
    (call,) = read_answer(json.dumps({"name": "move", "arguments": {"x": 2}}))
    assert call.name == "move"


REFERRING = [
    ("#/$defs/a%20b", {"$defs": {"a b": {"type": "integer"}}}),
    ("#number", {"$defs": {"x": {"$anchor": "number", "type": "integer"}}}),
    ("#/properties/pair/prefixItems/0", {}),
    ("#/not/properties/n", {"not": {"properties": {"n": {"type": "integer"}}, "required": ["n"]}}),
]


@pytest.mark.parametrize(("reference", "more"), REFERRING)
def test_every_reference_is_still_valid(reference: str, more: dict):
    """Also one into what is left out, or by another name."""
    pair = {"type": "array", "prefixItems": [{"type": "integer"}]}
    properties = {"x": {"$ref": reference}, "y": {"$ref": reference}, "pair": pair}
    tool = ToolSpec.from_schema({"type": "object", "properties": properties, **more}, name="t")
    schema = answer_schema([tool], optional=True, max_calls=1)
    assert list(schema["$defs"]) == ["t_0"]
    assert _allows(schema, {"name": "t", "arguments": {"x": 1, "y": 2}})
    assert not _allows(schema, {"name": "t", "arguments": {"x": "one"}})


A = {"properties": {"a": {"type": "string"}}, "required": ["a"]}
B = {"properties": {"b": {"type": "string"}}, "required": ["b"]}


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [A, B]},
        {"allOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}], "$defs": {"A": A, "B": B}},
        {**A, "allOf": [B]},
        {**A, "anyOf": [B, {"required": ["c"]}]},
        {**A, "$ref": "#/$defs/B", "$defs": {"B": B}},
        {**A, "if": A, "then": B},
        {**A, "required": ["a", "b"]},
        {**A, "required": ["a", "b"], "additionalProperties": {"type": "string"}},
    ],
)
def test_what_a_tool_allows_can_be_answered(schema: dict):
    """Objects that several schemas describe, and keys that are required and not described."""
    tool = ToolSpec.from_schema({"type": "object", **schema}, name="t")
    arguments = {"a": "x", "b": "y"}
    assert tool.check(arguments) is None
    answer = answer_schema([tool], optional=False, max_calls=1)
    assert _allows(answer, {"name": "t", "arguments": arguments})


def test_words_with_half_a_character_can_be_sent_on():
    """An escape stands for it."""
    words = read_answer('{"name": "none", "answer": "\\ud83d!"}')
    assert words == "\\ud83d!"
