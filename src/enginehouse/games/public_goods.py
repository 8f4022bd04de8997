"""An iterated public-goods game: what is given to a common pot grows and is shared equally.

The standard linear game of experimental economics (Ledyard 1995, "Public Goods: A Survey of
Experimental Research"): as long as the factor is above 1 and below the number of players, giving
everything is best for all together, and giving nothing is best for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Final

import msgspec
from pydantic import Field, model_validator

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.strict_model import StrictModel
from enginehouse.games.base import MOST_TURNS, Action, Decision, GameInfo, MeasureInfo, Pick

MOST_SEATS: Final = 20


class PublicGoodsSettings(StrictModel):
    """The endowment, the pot and the length of a match."""

    num_rounds: Annotated[int, Field(ge=1, le=MOST_TURNS)] = 10
    """Rounds in a match."""
    endowment: Annotated[float, Field(gt=0)] = 20
    """Points that each player gets in each round, to keep or to give."""
    factor: Annotated[float, Field(gt=0)] = 1.6
    """The pot is multiplied by this before it is shared."""
    contributions: Annotated[tuple[float, ...], Field(min_length=2)] = (0, 5, 10, 15, 20)
    """The amounts that a player may give."""

    @model_validator(mode="after")
    def _contributions_within_the_endowment(self) -> PublicGoodsSettings:
        if len(set(self.contributions)) != len(self.contributions):
            raise ValueError("'contributions' names an amount twice")
        outside = [amount for amount in self.contributions if not 0 <= amount <= self.endowment]
        if outside:
            raise ValueError(
                f"'contributions' has {_written(outside[0])}: amounts go from 0 to the endowment, "
                f"{_written(self.endowment)}"
            )
        return self


class State(msgspec.Struct, frozen=True):
    """Every seat's contribution in each round so far, in the order of the seats."""

    rounds: tuple[tuple[float, ...], ...] = ()


class PublicGoods:
    """An iterated public-goods game. See the protocol `Game` for the methods."""

    Settings: ClassVar[type[StrictModel]] = PublicGoodsSettings
    info: ClassVar[GameInfo] = GameInfo(
        name="public_goods",
        version=1,
        description="each player gives a part of an endowment to a pot that all share",
        least_seats=2,
        most_seats=MOST_SEATS,
        teams=True,
        measures=(
            MeasureInfo(
                name="contribution",
                description="mean share of the endowment that was given",
                lowest=0,
                highest=1,
            ),
            MeasureInfo(
                name="free_riding",
                description="share of rounds in which the smallest possible amount was given",
                lowest=0,
                highest=1,
            ),
        ),
    )

    def __init__(self, settings: PublicGoodsSettings, *, seats: tuple[str, ...]) -> None:
        if not 2 <= len(seats) <= MOST_SEATS or len(set(seats)) != len(seats):
            raise ConfigurationError(
                f"public_goods has 2 to {MOST_SEATS} seats with different names, "
                f"not {', '.join(seats) or 'none'}",
                fix=f"describe between 2 and {MOST_SEATS} teams",
            )
        self._settings = settings
        self._seats = seats
        self._amounts = {_written(amount): amount for amount in settings.contributions}
        self._choice = Pick(options=tuple(self._amounts))

    def rules(self) -> str:
        """The rules in words, rendered from the settings; the same for every seat and turn."""
        settings, players = self._settings, len(self._seats)
        rounds = "one round" if settings.num_rounds == 1 else f"{settings.num_rounds} rounds"
        return (
            f"You are playing a public-goods game. There are {players} players "
            f"({', '.join(self._seats)}) and {rounds}. At the start of each round every player "
            f"gets {_written(settings.endowment)} points and decides how many of them to give to a "
            "common pot; the rest is kept. All decide at the same time, without knowing what the "
            "others give.\n\n"
            f"The pot is then multiplied by {_written(settings.factor)} and shared equally among "
            f"all {players} players, whatever each of them gave. So each point given returns "
            f"{settings.factor / players:.3g} points to every player.\n\n"
            f"The possible amounts are: {', '.join(self._amounts)}.\n\n"
            "After each round everyone learns what everyone gave. A player's score is the sum of "
            "its points in all rounds: what it kept, and what it got back. Points of earlier "
            "rounds cannot be given."
        )

    def start(self, seed: int) -> State:
        """The state before the first round; the game has no chance, so `seed` changes nothing."""
        del seed
        return State()

    def decisions(self, state: State) -> Mapping[str, Decision]:
        """One of the amounts for every seat until the last round is over."""
        if len(state.rounds) >= self._settings.num_rounds:
            return {}
        return dict.fromkeys(self._seats, self._choice)

    def history(self, state: State, seat: str) -> tuple[str, ...]:
        """One text for each round, the same for every seat."""
        del seat
        texts = []
        scores = [0.0] * len(self._seats)
        for number, given in enumerate(state.rounds, start=1):
            points = self._points(given)
            scores = [score + point for score, point in zip(scores, points, strict=True)]
            outcomes = "; ".join(
                f"{player} gave {_written(gift)} and got {_shown(point)} points, "
                f"{_shown(score)} in all"
                for player, gift, point, score in zip(
                    self._seats, given, points, scores, strict=True
                )
            )
            pot, grown = sum(given), sum(given) * self._settings.factor
            texts.append(
                f"Round {number}: the pot of {_written(pot)} became {_shown(grown)}. {outcomes}."
            )
        return tuple(texts)

    def situation(self, state: State, seat: str) -> str:
        """The round, the own score and the question."""
        return (
            f"Round {len(state.rounds) + 1} of {self._settings.num_rounds}. You are {seat}, with "
            f"{_shown(self.scores(state)[seat])} points so far, and have "
            f"{_written(self._settings.endowment)} points for this round.\n"
            f"How many of them do you give to the pot: {', '.join(self._amounts)}?"
        )

    def apply(self, state: State, actions: Mapping[str, Action]) -> State:
        """The state after one round. Raises ValueError for an action that was not offered."""
        if not self.decisions(state) or set(actions) != set(self._seats):
            raise ValueError(f"these are not the seats that decide now: {dict(actions)}")
        given = []
        for seat in self._seats:
            action = actions[seat]
            if not isinstance(action, str) or action not in self._amounts:
                raise ValueError(f"{seat} cannot give {action!r}: {', '.join(self._amounts)}")
            given.append(self._amounts[action])
        return State((*state.rounds, tuple(given)))

    def past_actions(self, state: State) -> tuple[Mapping[str, Action], ...]:
        """Every seat's contribution in each round, as it was chosen."""
        return tuple(
            {seat: _written(amount) for seat, amount in zip(self._seats, given, strict=True)}
            for given in state.rounds
        )

    def scores(self, state: State) -> Mapping[str, float]:
        """Each seat's points so far."""
        scores = [0.0] * len(self._seats)
        for given in state.rounds:
            points = self._points(given)
            scores = [score + point for score, point in zip(scores, points, strict=True)]
        return dict(zip(self._seats, scores, strict=True))

    def measures(self, state: State) -> Mapping[str, Mapping[str, float | None]]:
        """What `info.measures` describes, by seat."""
        least, rounds = min(self._settings.contributions), len(state.rounds)
        if not rounds:
            return {seat: {"contribution": None, "free_riding": None} for seat in self._seats}
        columns = zip(self._seats, zip(*state.rounds, strict=True), strict=True)
        return {
            seat: {
                "contribution": sum(given) / rounds / self._settings.endowment,
                "free_riding": given.count(least) / rounds,
            }
            for seat, given in columns
        }

    def welfare(self, state: State) -> tuple[float, float]:
        """The points of all players, and the most that they can reach together."""
        settings = self._settings
        amounts = settings.contributions
        best = max(amount * (settings.factor - 1) for amount in (min(amounts), max(amounts)))
        most = settings.num_rounds * len(self._seats) * (settings.endowment + best)
        return sum(self.scores(state).values()), most

    def _points(self, given: tuple[float, ...]) -> list[float]:
        """Each seat's points for one round: what it kept, and its share of the pot."""
        share = sum(given) * self._settings.factor / len(given)
        return [self._settings.endowment - amount + share for amount in given]


def _shown(points: float) -> str:
    return f"{round(points, 2):.12g}"


def _written(amount: float) -> str:
    return f"{amount:.12g}"
