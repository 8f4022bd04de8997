"""The conformance suite of games: random matches in which every promise of `Game` is checked."""

from __future__ import annotations

import copy
import math
import random
import re
from collections.abc import Mapping
from typing import Any, Final

from enginehouse.games.base import Action, Decision, Game, Pick, ToolAction
from enginehouse.tools.specification import ToolSpec

MOST_TURNS: Final = 10_000
_OPTION = re.compile(r"[\w.+-]+")
_WORD = re.compile(r"\w+")
_NOT_OFFERED: Final = "no such option"


def check_game(game: Game, *, seats: tuple[str, ...], matches: int = 100) -> None:
    """Play `matches` random matches, with the seeds 0 to `matches` - 1.

    Raises AssertionError with the promise that the game broke, the seed and the turn. `seats` are
    those that the game was made for.
    """
    assert game.rules(), "there are rules"
    assert game.rules() == game.rules(), "the rules are always the same"
    for seed in range(matches):
        state = game.start(seed)
        assert game.start(seed) == state, f"seed {seed}: the same seed gives the same start"
        numbers = random.Random(seed)
        turn = 0
        while decisions := game.decisions(state):
            turn += 1
            where = f"seed {seed}, turn {turn}"
            assert turn <= MOST_TURNS, f"seed {seed}: a match ends within {MOST_TURNS} turns"
            _check_offers(decisions, seats=seats, where=where)
            actions = {
                seat: random_action(decision, numbers, words=game.situation(state, seat))
                for seat, decision in decisions.items()
            }
            state = _check_turn(game, state, actions, seats=seats, where=where)
        _check_end(game, state, seats=seats, where=f"seed {seed}, at the end")
        replayed = game.start(seed)
        for past in game.past_actions(state):
            replayed = game.apply(replayed, past)
        assert replayed == state, f"seed {seed}: the same actions lead to the same end"


def random_action(decision: Decision, numbers: random.Random, *, words: str = "") -> Action:
    """Any valid answer to `decision`; free text in a tool's arguments is a word of `words`."""
    if isinstance(decision, Pick):
        return numbers.choice(decision.options)
    tool = numbers.choice(decision.tools)
    arguments = _random_value(tool.parameters, numbers, _WORD.findall(words) or ["word"])
    return ToolAction(tool.name, arguments)


def _random_value(schema: Mapping[str, Any], numbers: random.Random, words: list[str]) -> Any:
    """A value that fits a JSON Schema of the simple kinds that tools of games have."""
    value: Any
    low, high = schema.get("minimum", -30), schema.get("maximum", 30)
    match schema.get("type"):
        case _ if "enum" in schema:
            value = numbers.choice(schema["enum"])
        case "object":
            value = {
                name: _random_value(inner, numbers, words)
                for name, inner in schema.get("properties", {}).items()
                if name in schema.get("required", ()) or numbers.random() < 0.5
            }
        case "array":
            least = schema.get("minItems", 0)
            length = numbers.randint(least, schema.get("maxItems", least + 3))
            value = [_random_value(schema["items"], numbers, words) for _ in range(length)]
        case "number":
            value = round(numbers.uniform(low, high), 1)
        case "integer":
            value = numbers.randint(low, high)
        case "boolean":
            value = numbers.random() < 0.5
        case "string":
            value = numbers.choice(words)
        case kind:
            raise AssertionError(f"a tool's argument has the type {kind}: use a simple JSON type")
    return value


def _check_offers(decisions: Mapping[str, Decision], *, seats: tuple[str, ...], where: str) -> None:
    """Known seats decide; options are distinct words, tools have names and schemas."""
    assert decisions.keys() <= set(seats), f"{where}: only seats of the match decide"
    for seat, decision in decisions.items():
        if isinstance(decision, Pick):
            options = decision.options
            assert options, f"{where}: {seat} has an option"
            assert len(set(options)) == len(options), f"{where}: {seat}'s options are distinct"
            for option in options:
                assert _OPTION.fullmatch(option), f"{where}: {option!r} is one word or number"
        else:
            specs = [ToolSpec.of(tool) for tool in decision.tools]
            assert specs, f"{where}: {seat} has a tool"
            names = {spec.name for spec in specs}
            assert len(names) == len(specs), f"{where}: {seat}'s tools have different names"
            free = [spec for spec in specs if not spec.parameters.get("required")]
            assert free, f"{where}: {seat} has a tool that needs no arguments"


def _check_turn(
    game: Game, state: Any, actions: Mapping[str, Action], *, seats: tuple[str, ...], where: str
) -> Any:
    """The state after one turn, in which only what was offered was accepted."""
    told = {seat: game.history(state, seat) for seat in seats}
    past = game.past_actions(state)
    for seat in seats:
        assert game.situation(state, seat), f"{where}: {seat} has a situation"
    for seat in actions:
        for wrong in (_NOT_OFFERED, ToolAction(_NOT_OFFERED, {})):
            _require_refusal(game, state, {**actions, seat: wrong}, where=where)
        others = {other: action for other, action in actions.items() if other != seat}
        _require_refusal(game, state, others, where=where)
    before = copy.deepcopy(state)
    after = game.apply(state, actions)
    assert state == before, f"{where}: apply leaves its state as it was"
    assert game.apply(state, actions) == after, f"{where}: the same actions have the same effect"
    for seat in seats:
        texts = game.history(after, seat)
        assert len(texts) == len(told[seat]) + 1, f"{where}: {seat}'s history grows by one text"
        assert texts[:-1] == told[seat], f"{where}: {seat}'s earlier history never changes"
        assert texts[-1].strip(), f"{where}: {seat} is told what happened"
    assert game.past_actions(after) == (*past, actions), f"{where}: past actions are kept"
    scores = game.scores(after)
    assert list(scores) == list(seats), f"{where}: every seat has a score, in order"
    assert all(math.isfinite(score) for score in scores.values()), f"{where}: scores are finite"
    total, _ = game.welfare(after)
    assert math.isclose(total, sum(scores.values()), abs_tol=1e-6), f"{where}: welfare is the sum"
    return after


def _check_end(game: Game, state: Any, *, seats: tuple[str, ...], where: str) -> None:
    """Measures and the total are within their bounds; nothing more can happen."""
    total, most = game.welfare(state)
    assert most is None or total <= most + 1e-6, f"{where}: the largest total is not exceeded"
    measures = game.measures(state)
    assert list(measures) == list(seats), f"{where}: every seat has measures, in order"
    for seat, values in measures.items():
        infos = {info.name: info for info in game.info.measures}
        assert values.keys() == infos.keys(), f"{where}: {seat}'s measures are those of info"
        for name, value in values.items():
            low, high = infos[name].lowest, infos[name].highest
            assert value is None or (
                math.isfinite(value)
                and (low is None or value >= low)
                and (high is None or value <= high)
            ), f"{where}: {seat}'s {name} is {value}, out of bounds"
    last = game.past_actions(state)[-1]
    _require_refusal(game, state, last, where=where)


def _require_refusal(game: Game, state: Any, actions: Mapping[str, Action], *, where: str) -> None:
    try:
        game.apply(state, actions)
    except ValueError:
        return
    raise AssertionError(f"{where}: apply refuses what was not offered: {dict(actions)}")
