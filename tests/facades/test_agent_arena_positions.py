from __future__ import annotations

import pytest

from enginehouse.facades.agent_arena.positions import (
    as_position,
    normal_observation,
    normal_parameters,
)

POINT = [1.5, 0.0, -2.0]


@pytest.mark.parametrize(
    "spelling",
    [
        [1.5, 0, -2],
        (1.5, 0, -2),
        ["1.5", "0", "-2"],
        {"x": 1.5, "y": 0, "z": -2},
        {"x": 1.5, "z": -2},
        "(1.5, 0, -2)",
        "Vector3(1.5, 0.0, -2.0)",
    ],
)
def test_spellings_of_a_position(spelling):
    """Lists, objects, and what Godot writes for a Vector3."""
    assert as_position(spelling) == POINT


@pytest.mark.parametrize(
    "value",
    [
        *(None, 3, "Berry1", "(1, 2)", "(a, b, c)", "1, 2, 3"),
        *([1, 2], [1, 2, 3, 4], [1, None, 3], [1, True, 3], {"x": 1}, {"x": 1, "y": 2}),
        *([float("nan"), 0, 0], ["inf", 0, 0], [10**400, 0, 0]),
    ],
)
def test_what_is_no_position(value):
    """Names, other lengths, and numbers that are not finite."""
    assert as_position(value) is None


@pytest.mark.parametrize(
    "parameters",
    [
        {"target_position": POINT},
        {"target_position": {"x": 1.5, "y": 0, "z": -2}},
        {"target": POINT},
        {"target": {"x": 1.5, "z": -2}},
        {"target": "(1.5, 0, -2)"},
        {"position": POINT},
        {"target_x": 1.5, "target_y": 0, "target_z": -2},
        {"target_x": 1.5, "target_z": -2},
    ],
)
def test_every_spelling_of_a_target_becomes_target_position(parameters):
    """Other parameters stay."""
    given = {**parameters, "speed": 2}
    assert normal_parameters(given) == {"target_position": POINT, "speed": 2}
    assert given == {**parameters, "speed": 2}


@pytest.mark.parametrize(
    "parameters",
    [{}, {"target": "Berry1"}, {"target_x": 1}, {"target_x": "a", "target_z": 1}, {"speed": 2}],
)
def test_parameters_without_a_target_stay_as_they_are(parameters):
    """A target may be a name."""
    assert normal_parameters(parameters) == parameters


def test_positions_in_an_observation_are_lists():
    """At any depth; numbers are rounded, and texts that look like positions are left alone."""
    observation = {
        "position": "(0.123, 1, 0)",
        "velocity": {"x": 1, "y": 0, "z": 0},
        "nearby_resources": [{"name": "(1, 2, 3)", "position": {"x": 5, "y": 0, "z": 5}}],
        "health": 99.98765,
        "custom_data": {"rotation": [0, 90, 0]},
        "team": None,
    }
    assert normal_observation(observation) == {
        "position": [0.12, 1, 0],
        "velocity": [1, 0, 0],
        "nearby_resources": [{"name": "(1, 2, 3)", "position": [5, 0, 5]}],
        "health": 99.99,
        "custom_data": {"rotation": [0, 90, 0]},
        "team": None,
    }
