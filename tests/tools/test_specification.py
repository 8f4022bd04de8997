"""Tools from whatever describes them, and what is refused."""

from __future__ import annotations

import enum
import json
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.tool_calls import ToolDefinition
from enginehouse.tools import ToolSpec
from enginehouse.tools.specification import tool_specs

MOVE = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "how": {"enum": ["walk", "run"]}},
    "required": ["x"],
}


SELF = {"$ref": "#/$defs/y"}
NESTED = json.loads('{"items": ' * 300 + "{}" + "}" * 300)


class Place(BaseModel):
    """Where."""

    x: int
    y: int = 0


class Even(BaseModel):
    """A number with a condition that no schema shows."""

    number: int

    def model_post_init(self, _: Any, /) -> None:
        """Check it."""
        if self.number % 2:
            raise ValueError("only even numbers")


def travel(
    to: Place,
    *,
    how: Literal["walk", "run"] = "walk",
    hours: Annotated[float, Field(gt=0, description="At most")] = 1.0,
) -> str:
    """Travel there.

    Slowly.
    """
    return f"{to.x} {how} {hours}"


@pytest.mark.parametrize(
    "tool",
    [
        {"name": "move", "description": "Move.", "parameters": MOVE},
        {
            "type": "function",
            "function": {"name": "move", "description": "Move.", "parameters": MOVE},
        },
        MOVE | {"title": "move", "description": "Move."},
        ToolDefinition(name="move", description="Move.", parameters=MOVE),
    ],
    ids=["flat", "openai", "schema", "definition"],
)
def test_every_form_gives_the_same_tool(tool: Any):
    """Name, description and what is valid are the same, however the tool is written."""
    spec = ToolSpec.of(tool)
    assert (spec.name, spec.description) == ("move", "Move.")
    assert spec.check({"x": 1, "how": "run"}) is None
    assert "'x' is a required property" in (spec.check({}) or "")


def test_a_tool_without_parameters_takes_none():
    """A flat dict may leave the schema out."""
    spec = ToolSpec.of({"name": "wait", "description": "Wait.", "parameters": None})
    assert spec.parameters["type"] == "object"
    assert spec.check({}) is None


def test_a_function_is_described_by_its_annotations_and_docstring():
    """Nested models, literals, defaults and bounds are in the schema; extra keys are refused."""
    spec = ToolSpec.of(travel)
    assert spec.name == "travel"
    assert spec.description == "Travel there.\n\nSlowly."
    assert spec.parameters["required"] == ["to"]
    assert spec.parameters["properties"]["hours"]["description"] == "At most"
    assert spec.check({"to": {"x": 1}}) is None
    for wrong in (
        {"to": {"x": "far"}},
        {"to": {"x": 1}, "how": "fly"},
        {"to": {"x": 1}, "hours": 0},
        {"to": {"x": 1}, "speed": 3},
    ):
        assert spec.check(wrong), wrong


def test_a_validator_of_the_users_counts_too():
    """What pydantic refuses beyond the schema is not valid, and the words are the validator's."""

    def take(even: Even) -> None:
        """Take it."""

    assert ToolSpec.of(take).check({"even": {"number": 2}}) is None
    assert "only even numbers" in (ToolSpec.of(take).check({"even": {"number": 3}}) or "")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"x": {"type": "dict"}}},
        {"type": "object", "required": "x"},
        {"type": "string"},
        {"properties": {}},
        {"type": "object", "properties": {"x": {"$ref": "#/$defs/gone"}}},
        {"type": "object", "properties": {"x": {"$ref": "http://127.0.0.1:1/schema.json"}}},
        {"type": "object", "properties": {"x": {"default": {1, 2}}}},
        {"type": "object", "description": "half \ud83d"},
        {"type": "object", "properties": {"x": {"$ref": "#where"}}},
        {"type": "object", "properties": {"x": {"$ref": "#/required"}}, "required": ["x"]},
        {"type": "object", "properties": {"x": {"$ref": "#/required/x"}}, "required": ["x"]},
        {"type": "object", "properties": {"x": {"$ref": "#/x-odd"}}, "x-odd": {"type": "dict"}},
        {"type": "object", "properties": {"x": {"$dynamicRef": "#where"}}},
        {"type": "object", "properties": {"x": {"$id": "http://x/", "$ref": "#/$defs/y"}}},
        {"type": "object", "properties": {"x": {"$ref": "#/$defs/y"}}, "$defs": {"y": SELF}},
        {"type": "object", "anyOf": [{"not": {"$ref": "#"}}]},
        {"type": "object", "properties": {"x": NESTED}},
        ["type", "object"],
    ],
)
def test_what_is_no_json_schema_of_an_object_is_refused(schema: Any):
    """The error names the tool and shows what a schema looks like; nothing is ever fetched."""
    with pytest.raises(ConfigurationError, match="'move'") as raised:
        ToolSpec.from_schema(schema, name="move")
    assert '"type": "object"' in (raised.value.fix or "")


@pytest.mark.parametrize("name", ["", "math.hypot", "two words", "x" * 65, "größe", "auto", "none"])
def test_names_that_the_wire_forbids_are_refused(name: str):
    """Also the words that mean something as a tool choice."""
    with pytest.raises(ConfigurationError, match=r"name|called") as raised:
        ToolSpec.from_schema(MOVE, name=name)
    assert raised.value.fix


def test_two_tools_cannot_have_one_name():
    """A call could not be told from the other's."""
    with pytest.raises(ConfigurationError, match="'travel'"):
        tool_specs([travel, MOVE | {"title": "travel"}])


def test_functions_that_cannot_be_called_by_name_are_refused():
    """So are types that JSON has not, and things that describe nothing; each error says why."""

    def variadic(*places: int) -> None:
        """Go."""

    def odd(stream: enum.EnumMeta) -> None:
        """Go."""

    def unknown(x: Nowhere) -> None:  # noqa: F821
        """Go."""

    for wrong in (variadic, odd, unknown, {"parameters": MOVE}, {"name": 3}, 7):
        with pytest.raises(ConfigurationError) as raised:
            ToolSpec.of(wrong)  # type: ignore[arg-type]
        assert raised.value.fix


@pytest.mark.parametrize("value", [10**30, -(2**63) - 1, float("inf"), float("nan")])
def test_numbers_without_end_are_not_valid(value: float):
    """A digit repeated until max_tokens fits the schema, and yet no tool or journal can take it."""
    spec = ToolSpec.from_schema({"type": "object", "properties": {}}, name="move")
    assert spec.check({"x": [{"deep": value}]})


def test_a_spec_tells_models_only_what_they_need():
    """The definition that goes on the wire has neither function nor types."""
    assert type(ToolSpec.of(travel).definition()) is ToolDefinition


@pytest.mark.parametrize(
    ("reference", "more"),
    [
        ("#/properties/list/prefixItems/0", {}),
        ("#/$defs/a%20b", {"$defs": {"a b": {"type": "string"}}}),
        ("#/$defs/a~1b", {"$defs": {"a/b": {"type": "string"}}}),
        ("#text", {"$defs": {"x": {"$anchor": "text", "type": "string"}}}),
        ("#/x-kept/0", {"x-kept": [{"type": "string"}]}),
    ],
)
def test_references_into_the_schema_are_followed(reference: str, more: dict[str, Any]):
    """Pointers through lists and with escapes, and anchors; data that looks like one is none."""
    properties = {
        "x": {"$ref": reference},
        "list": {"type": "array", "prefixItems": [{"type": "string"}]},
        "$ref": {"const": {"$ref": "#/nowhere"}},
    }
    spec = ToolSpec.from_schema({"type": "object", "properties": properties, **more}, name="move")
    assert spec.check({"x": "there"}) is None
    assert "not of type 'string'" in (spec.check({"x": 3}) or "")


def test_a_schema_may_refer_to_itself_further_down():
    """A tree is no endless reference, and its depth is bounded like any other's."""
    tree = {
        "type": "object",
        "properties": {"child": {"$ref": "#"}},
        "allOf": [{"$ref": "#/$defs/a"}],
    }
    tree["$defs"] = {"a": {"properties": {"child": {"$ref": "#"}}}}
    spec = ToolSpec.from_schema(tree, name="grow")
    assert spec.check({"child": {"child": {}}}) is None
    assert spec.check({"child": {"child": 3}})


@pytest.mark.parametrize("levels", [100, 600])
def test_arguments_that_are_nested_too_deeply_are_not_valid(levels: int):
    """Where the check itself would run out of stack too."""
    spec = ToolSpec.from_schema({"type": "object", "properties": {}}, name="move")
    deep = json.loads("[" * levels + "]" * levels)
    assert "64 levels" in (spec.check({"x": deep}) or "")


def test_a_check_that_runs_out_of_stack_is_an_invalid_call():
    """A schema that repeats itself many times on one level is as deep as nested arguments."""
    links = {str(n): {"allOf": [{"$ref": f"#/$defs/{n + 1}"}]} for n in range(60)}
    links["60"] = {"items": {"$ref": "#/$defs/0"}}
    chain = {"type": "object", "properties": {"x": {"$ref": "#/$defs/0"}}, "$defs": links}
    spec = ToolSpec.from_schema(chain, name="move")
    assert "nested too deeply" in (spec.check({"x": [[[[[[]]]]]]}) or "")


@pytest.mark.parametrize("arguments", [{"x": "\ud83d"}, {"x": [{"\udcff": 1}]}])
def test_half_a_character_is_not_valid(arguments: dict[str, Any]):
    """A lone surrogate is JSON, but no UTF-8: neither a wire nor a journal could take it."""
    spec = ToolSpec.from_schema({"type": "object", "properties": {}}, name="move")
    assert "half a character" in (spec.check(arguments) or "")
    assert spec.check({"x": "👍"}) is None


def test_parameters_of_any_name_are_told_and_given():
    """Also those that pydantic drops or refuses as names of fields."""

    def odd(
        _x: int,
        model_config: str,
        model_dump: Place,
        __doc__: str = "d",  # noqa: A002
        copy: int = 1,
    ) -> None:
        """Take them."""

    spec = ToolSpec.of(odd)
    assert list(spec.parameters["properties"]) == [
        "_x", "model_config", "model_dump", "__doc__", "copy",
    ]  # fmt: skip
    assert spec.parameters["required"] == ["_x", "model_config", "model_dump"]
    assert spec.parameters["properties"]["copy"] == {
        "default": 1,
        "title": "Copy",
        "type": "integer",
    }
    given = {"_x": 1, "model_config": "c", "model_dump": {"x": 1}}
    assert spec.check(given) is None
    assert spec.typed(given) == given | {"model_dump": Place(x=1)}
    assert "_x" in (spec.check(given | {"_x": "far"}) or "")
    assert spec.check({"argument__x": 1} | given)
