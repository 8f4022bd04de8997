"""Settings are finite numbers, whichever model they belong to."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator

import pytest
from pydantic import BaseModel, ValidationError

import enginehouse.deployment.configuration
import enginehouse.facades.agent_arena.composing
import enginehouse.tasks.custom  # noqa: F401 - its models are found among the subclasses
from enginehouse.core.errors import ConfigurationError
from enginehouse.core.sampling import SamplingParameters
from enginehouse.core.strict_model import StrictModel


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
        if re.search(r"\bfloat\b", str(field.annotation))
    },
    key=str,
)


def test_every_model_of_settings_is_strict():
    """There is one mechanism; a model beside it would be forgotten."""
    ours = {kind for kind in models(BaseModel) if kind is not StrictModel}
    assert ours == set(models(StrictModel))


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=[f"{k.__name__}.{n}" for k, n in FIELDS])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, "inf", "nan", ".inf"])
def test_no_number_is_infinite_or_nan(kind, name, value):
    """As a number, and as YAML's or a shell's text for one."""
    with pytest.raises(ValidationError) as caught:
        kind.model_validate({name: value})
    kinds = {e["type"] for e in caught.value.errors() if e["loc"] == (name,)}
    assert kinds
    assert kinds <= {"finite_number", "float_parsing"}


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
