"""Settings are finite numbers, whichever model they belong to; those in parts are written flat."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_args, get_origin

import pytest
from pydantic import BaseModel, Field, ValidationError, model_validator

import enginehouse.facades.agent_arena.composing
import enginehouse.games.public_goods
import enginehouse.games.red_black
import enginehouse.jobs.configuration
import enginehouse.jobs.executors.kubernetes.executor
import enginehouse.jobs.executors.ray.settings
import enginehouse.jobs.executors.slurm.settings
import enginehouse.tasks.custom
import enginehouse.watch.configuration  # noqa: F401 - models are found among the subclasses
from enginehouse.core.errors import ConfigurationError
from enginehouse.core.sampling import SamplingParameters
from enginehouse.core.strict_model import ComposedModel, StrictModel, explain


def models(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Every model of settings that this package has; not those made from a tool's signature."""
    for child in kind.__subclasses__():
        home = sys.modules.get(child.__module__)
        if child.__module__.startswith("enginehouse.") and hasattr(home, child.__name__):
            yield child
            yield from models(child)


FIELDS = sorted(
    {
        (kind, name)
        for kind in models(StrictModel)
        for name, field in kind.model_fields.items()
        if not issubclass(kind, ComposedModel) and re.search(r"\bfloat\b", str(field.annotation))
    },
    key=str,
)


def test_every_model_of_settings_is_strict():
    """There is one mechanism; a model beside it would be forgotten.

    What a service is sent is not a setting.
    """
    ours = {
        kind
        for kind in models(BaseModel)
        if kind is not StrictModel and kind.__module__ != "enginehouse.facades.agent_arena.service"
    }
    assert ours == set(models(StrictModel))


def _one_value(kind: type[BaseModel], name: str) -> tuple[Any, Any]:
    """The type of the keys, if the field is a mapping, and that of the values."""
    annotation = kind.model_fields[name].annotation
    if get_origin(annotation) in (dict, Mapping):
        keys, values = get_args(annotation)
        return keys, values
    return None, annotation


NUMBERS = (math.inf, -math.inf, math.nan)
TEXTS = ("inf", "nan", ".inf")
CASES = [
    pytest.param(kind, name, value, id=f"{value!r}-{kind.__name__}.{name}")
    for kind, name in FIELDS
    # where texts are values, these are three of them
    for value in (NUMBERS if str in get_args(_one_value(kind, name)[1]) else NUMBERS + TEXTS)
]


@pytest.mark.parametrize(("kind", "name", "value"), CASES)
def test_no_number_is_infinite_or_nan(kind, name, value):
    """As a number, and as YAML's or a shell's text for one."""
    keys, _ = _one_value(kind, name)
    given: object = value
    if keys is not None:
        given = {1 if keys is int else "key": value}
    elif get_origin(kind.model_fields[name].annotation) is tuple:
        given = [value]
    with pytest.raises(ValidationError) as caught:
        kind.model_validate({name: given})
    kinds = {e["type"] for e in caught.value.errors() if e["loc"][:1] == (name,)}
    assert kinds & {"finite_number", "float_parsing"}


@pytest.mark.parametrize(
    "name",
    [
        "temperature",
        "top_p",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
    ],
)
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_no_sampling_parameter_is(name, value):
    """From Python, or a file of prompts."""
    with pytest.raises(ConfigurationError, match=name):
        SamplingParameters(**{name: value})


class Door(StrictModel):
    """One part."""

    width: int
    colour: str | None = None


class Key(StrictModel):
    """Another part."""

    teeth: tuple[int, ...] = ()


class Lock(ComposedModel):
    """Both."""

    door: Door
    key: Key


def problems(values: dict[str, object]) -> list[str]:
    """What is wrong with them."""
    with pytest.raises(ValidationError) as caught:
        Lock.model_validate(values)
    return explain(caught.value, Lock)


def test_parts_are_read_and_written_side_by_side():
    """What is dumped can be read again, a part with only defaults included."""
    lock = Lock.model_validate({"width": 3, "teeth": [1, 2]})
    assert lock == Lock(width=3, teeth=(1, 2))
    assert (lock.door, lock.key) == (Door(width=3), Key(teeth=(1, 2)))
    assert lock.model_dump(mode="json", exclude_none=True) == {"width": 3, "teeth": [1, 2]}
    assert Lock.model_validate(lock.model_dump()) == lock
    assert Lock(width=1).key == Key()


def test_wrong_keys_of_all_parts_are_named_without_the_part():
    """Suggestions come from every part; the name of a part is not a key."""
    missing, wrong = problems({"teeth": ["x"]})
    assert missing == "'width' is missing"
    assert wrong.startswith("'teeth.0': ")
    assert problems({"width": 1, "tooth": 1}) == ["unknown key 'tooth'; did you mean 'teeth'?"]
    (part,) = problems({"width": 1, "key": {"teeth": [1]}})
    assert part.startswith("unknown key 'key'")
    assert "known: colour, teeth, width" in part


COMPOSED = [kind for kind in models(StrictModel) if issubclass(kind, ComposedModel)]


@pytest.mark.parametrize("kind", [kind for kind in COMPOSED if kind is not ComposedModel])
def test_no_two_parts_have_a_key_in_common(kind):
    """A value would belong to both."""
    keys = [key for part in kind.model_fields.values() for key in part.annotation.model_fields]
    assert sorted(keys) == sorted(kind.user_fields())


class Window(StrictModel):
    """Has two keys that are checked together."""

    width: int = 1
    height: int = 1

    @model_validator(mode="after")
    def _visible(self) -> Window:
        if not self.width * self.height:
            raise ValueError("a window needs an area")
        return self


class House(StrictModel):
    """Holds a model with a check of its own."""

    window: Window = Window()


@pytest.mark.parametrize(
    ("window", "line"),
    [
        ({"width": 0}, "'window': a window needs an area"),
        ({"width": "wide"}, "(got 'wide')"),
        ([3], "(got a list)"),
    ],
)
def test_a_value_is_shown_unless_the_message_is_about_several_keys(window, line):
    """A mapping that was checked as a whole has the right type."""
    with pytest.raises(ValidationError) as error:
        House(window=window)
    (explained,) = explain(error.value, House)
    assert explained.endswith(line)


class _Part(StrictModel):
    name: str


class _Whole(StrictModel):
    parts: Annotated[tuple[_Part, ...], Field(min_length=1)]


@pytest.mark.parametrize(
    ("parts", "lines"),
    [
        ([{"nam": "x", "name": "y"}], ["unknown key 'parts.0.nam'; did you mean 'name'?"]),
        ([], ["'parts': Tuple should have at least 1 item after validation, not 0 (got a list)"]),
    ],
)
def test_a_list_of_wrong_parts_is_not_called_too_short(parts, lines):
    """Only the parts are named."""
    with pytest.raises(ValidationError) as caught:
        _Whole.model_validate({"parts": parts})
    assert explain(caught.value, _Whole) == lines
