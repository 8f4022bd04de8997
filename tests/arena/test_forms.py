"""How votes, willingness and opinions are read: nothing is guessed, and everything ends."""

from __future__ import annotations

import json

import pytest

from enginehouse.arena.forms import (
    ChoiceVote,
    ChosenWillingness,
    FreeOpinion,
    ParsedVote,
    ParsedWillingness,
    SchemaVote,
)
from enginehouse.core.sampler import Completion
from enginehouse.testing.growth import assert_linear

OPTIONS = ("RED", "BLACK")
RANT = "I cannot believe that they chose RED. BLACK would be best! " * 800  # about 10,000 tokens
VOTES = (SchemaVote(OPTIONS), ChoiceVote(OPTIONS), ParsedVote(OPTIONS))


def said(text: str, finish_reason: str = "stop") -> Completion:
    """An answer."""
    return Completion(text=text, finish_reason=finish_reason)


@pytest.mark.parametrize(
    ("text", "vote"),
    [
        ("VOTE: BLACK", "BLACK"),
        ("They were fair.\n\nVOTE: BLACK\n", "BLACK"),
        ("**Vote: black.**", "BLACK"),
        ("BLACK", "BLACK"),
        ("<think>RED? VOTE: RED</think>\nVOTE: BLACK", "BLACK"),
        ("<think>a</think>b<think>VOTE: RED\n</think>\nVOTE: BLACK", "BLACK"),
        ("RED is tempting.</think>VOTE: BLACK", "BLACK"),
    ],
)
def test_a_parsed_vote_is_the_last_line(text, vote):
    """Whatever was said or thought before it."""
    assert ParsedVote(OPTIONS).read(said(text)) == vote


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \n ",
        "[BLACK] would be preferred, but I go with the majority",
        "[BLACK] is preferred",
        "VOTE: RED or BLACK",
        "RED and BLACK are both possible.\nVOTE: RED, not BLACK",
        "VOTE: BLACK\nOn second thoughts, RED.",
        "VOTE: SCHWARZ",
        "Ich stimme für Schwarz.",
        "我选择黑色",
        "I'm sorry, but I cannot take part in games that involve competition.",
        "<think>It should be BLACK.\nVOTE: BLACK",
        "Devote: BLACK",
        "The word is\nBLACK",
        RANT,
        RANT + "VOTE: RED or so",
    ],
)
def test_a_parsed_vote_that_is_not_clear_is_invalid(text):
    """Nothing is searched for within a text."""
    assert ParsedVote(OPTIONS).read(said(text)) is None


def test_a_vote_after_a_rant_counts():
    """Its length is no reason to ignore it."""
    assert ParsedVote(OPTIONS).read(said(f"{RANT}\nVOTE: RED")) == "RED"


@pytest.mark.parametrize("form", [SchemaVote(OPTIONS), ParsedVote(OPTIONS)])
def test_a_vote_that_was_cut_off_is_invalid(form):
    """What is missing could have changed it."""
    text = '{"reasoning": "x", "vote": "RED"}' if isinstance(form, SchemaVote) else "VOTE: RED"
    assert form.read(said(text)) == "RED"
    assert form.read(said(text, "length")) is None


@pytest.mark.parametrize(
    ("text", "vote"),
    [
        ('{"reasoning": "RED pays, [BLACK] is preferred", "vote": "BLACK"}', "BLACK"),
        ('<think>{"vote": "RED"}</think>{"reasoning": "", "vote": "BLACK"}', "BLACK"),
        ('{"vote": "BLACK"}', None),
        ('{"reasoning": "", "vote": "black"}', None),
        ('{"reasoning": "", "vote": "SCHWARZ"}', None),
        ('{"reasoning": "both RED and', None),
        ('{"reasoning": {"deep": 1}, "vote": "RED"}', None),
        ("I refuse.", None),
        ("", None),
        ("[" * 100_000, None),
        (RANT, None),
    ],
)
def test_votes_by_schema(text, vote):
    """The object has to be whole and the vote one of the options."""
    assert SchemaVote(OPTIONS).read(said(text)) == vote


def test_the_schema_has_the_reasoning_first():
    """So the choice is made, and constrained, after the model has reasoned."""
    schema = SchemaVote(OPTIONS).constraint.json_schema
    assert schema is not None
    assert list(schema["properties"]) == ["reasoning", "vote"]
    assert schema["properties"]["vote"]["enum"] == ["RED", "BLACK"]
    short = SchemaVote(OPTIONS, reasoned=False)
    assert short.read(said('{"vote": "RED"}')) == "RED"
    assert json.dumps(short.constraint.json_schema).count("reasoning") == 0


@pytest.mark.parametrize(
    ("text", "vote"),
    [("RED", "RED"), (" BLACK\n", "BLACK"), ("RED BLACK", None), ("red", None), ("", None)],
)
def test_votes_by_choice(text, vote):
    """Constrained decoding gives nothing else; other answers are invalid."""
    assert ChoiceVote(OPTIONS).read(said(text)) == vote


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("2", 2),
        ("Willingness: 3", 3),
        ("WILLINGNESS: **0**", 0),
        ("I have much to say.\n3", 3),
        ("<think>3?</think>1", 1),
        ("4", None),
        ("-1", None),
        ("2 or 3", None),
        ("very much", None),
        ("", None),
        ("<think>2", None),
        (RANT, None),
    ],
)
def test_willingness(text, level):
    """A digit from 0 to 3, and nothing else."""
    assert ParsedWillingness().read(said(text)) == level


def test_chosen_willingness():
    """The constraint allows exactly what is read."""
    assert ChosenWillingness().constraint.choice == ("0", "1", "2", "3")
    assert ChosenWillingness().read(said("3")) == 3
    assert ChosenWillingness().read(said("3 of 3")) is None


def test_an_opinion_is_what_is_said_aloud():
    """Nothing is left of an answer that never ended its reasoning."""
    assert FreeOpinion().read(said("<think>hm</think> BLACK, please. ")) == "BLACK, please."
    assert FreeOpinion().read(said("<think>hm")) is None
    assert FreeOpinion().read(said(" ")) is None


@pytest.mark.parametrize("piece", ["VOTE: ", "<think>", "</think>", "\n", "{", '"', "RED ", "*"])
@pytest.mark.parametrize("form", [*VOTES, ParsedWillingness(), FreeOpinion()])
def test_reading_takes_linear_time(form, piece):
    """Whatever a model repeats."""
    assert_linear(lambda text: form.read(said(text)), lambda n: piece * (n // len(piece)))
