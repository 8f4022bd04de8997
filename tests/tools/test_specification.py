"""Tools from whatever describes them, and what is refused."""

from __future__ import annotations

import enum
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
    with pytest.raises(ConfigurationError, match="several tools are called 'travel'"):
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
