"""From an experiment's configuration to its matches, and to who answers for each agent."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from enginehouse.arena.checks import check_experiment
from enginehouse.arena.records import (
    LLM,
    AgentSpec,
    ExperimentSpec,
    ModelSpec,
    TeamSpec,
)
from enginehouse.commands.experiment_configuration import (
    MOST_AGENTS,
    MOST_MATCHES,
    AgentConfig,
    ExperimentConfig,
    ProviderConfig,
    TeamConfig,
    merge_providers,
)
from enginehouse.core.errors import ConfigurationError, UnknownNameError, nearest
from enginehouse.core.sampling import SamplingParameters
from enginehouse.engines.base import ServedEngine
from enginehouse.engines.registry import load_engine
from enginehouse.games.base import Game
from enginehouse.games.registry import GAMES, make_game

_DEFAULT_GAME = "red_black"
_DEFAULT_SIZE = 5
_OURS = ("name", "team_size", "seed")  # the keys of `game:` that are not the game's own


@dataclass(frozen=True, kw_only=True)
class ExperimentPlan:
    """What is played, and by model name (that of a ModelSpec) who answers."""

    spec: ExperimentSpec
    game: Game
    providers: dict[str, ProviderConfig]


def plan_experiment(config: ExperimentConfig, *, origin: str) -> ExperimentPlan:
    """The matches of an experiment. Nothing is looked up or asked.

    `origin` names the configuration in errors. Raises ConfigurationError.
    """
    block = dict(config.game)
    name = block.pop("name", _DEFAULT_GAME)
    size, seed = block.pop("team_size", None), block.pop("seed", None)
    _require_whole("team_size", size, least=1, most=MOST_AGENTS, origin=origin)
    _require_whole("seed", seed, origin=origin)
    game_class = GAMES.load(str(name))
    _require_known_keys(block, game_class.Settings.model_fields, origin=origin)

    teams = config.teams or {
        "team_a": config.team_a or TeamConfig(),
        "team_b": config.team_b or TeamConfig(),
    }
    pairings = _pairings(config, list(teams), seats=game_class.info.least_seats)
    if (total := config.num_games * len(pairings)) > MOST_MATCHES:
        raise ConfigurationError(
            f"{origin}: the experiment has {total:,} matches",
            why=f"{MOST_MATCHES:,} is the most; each of {len(pairings):,} pairings is played "
            f"{config.num_games:,} times",
            fix="give a smaller num_games, or list fewer pairings",
        )
    seats = tuple(f"team_{letter}" for letter in string.ascii_lowercase[: len(pairings[0])])
    game = make_game(str(name), block, seats=seats)
    settings = game_class.Settings.model_validate(block).model_dump(mode="json")

    models = _Models(serve=config.serve)
    default_size = size or (_DEFAULT_SIZE if game.info.teams else 1)
    described = []
    for team, given in teams.items():
        members = []
        for agent in _agents(given, default_size):
            model = None
            if agent.is_llm:
                provider = merge_providers(config.default_provider, given.provider, agent.provider)
                model = models.add(provider, team=team)
            members.append(AgentSpec(kind=agent.plays, model=model))
        described.append(TeamSpec(name=team, agents=tuple(members)))
    spec = ExperimentSpec(
        name=config.experiment_name or "experiment",
        game=str(name),
        settings=settings,
        seats=seats,
        teams=tuple(described),
        models=tuple(
            ModelSpec(name=model, parameters=_parameters(provider))
            for model, provider in models.providers.items()
        ),
        pairings=pairings,
        matches=config.num_games,
        seed=next((s for s in (config.seed, seed) if s is not None), 0),
        deliberation=config.deliberation.spec(),
    )
    check_experiment(spec, game=game)
    return ExperimentPlan(spec=spec, game=game, providers=models.providers)


class _Models:
    """The different providers of an experiment, each under a name of its own."""

    def __init__(self, *, serve: bool) -> None:
        self._serve = serve
        self.providers: dict[str, ProviderConfig] = {}

    def add(self, provider: ProviderConfig, *, team: str) -> str:
        """The name of a provider, which is the same for equal ones. Raises ConfigurationError."""
        if provider.type is None:
            raise ConfigurationError(
                f"no model is configured for {team}",
                fix=f"give default_provider or {team}.provider, with a type and a model; or "
                f"agents that follow a script, as in {team}: {{agents: tit for tat}}",
            )
        if provider.model is None:
            raise ConfigurationError(
                f"the provider of {team} names no model",
                fix=f"give {team}.provider.model, or a model in default_provider",
            )
        if self._serve and isinstance(load_engine(provider.type), ServedEngine):
            provider = provider.model_copy(update={"serve": True})
        for name, known in self.providers.items():
            if known == provider:
                return name
        stem = name = _model_name(provider)
        if name in self.providers and self.providers[name].type != provider.type:
            stem = name = f"{stem} ({provider.type})"
        number = 1
        while name in self.providers:
            name = f"{stem} ({(number := number + 1)})"
        self.providers[name] = provider
        return name


def _model_name(provider: ProviderConfig) -> str:
    assert provider.model is not None
    model = provider.model
    if model.startswith(("/", "./", "../", "~")):  # a path, and not owner/name
        model = Path(model).name or model
    return f"{model}+{provider.adapter.name}" if provider.adapter else model


def _agents(team: TeamConfig, default_size: int) -> Sequence[AgentConfig]:
    if isinstance(team.agents, tuple):
        agents: Sequence[AgentConfig] = team.agents
    else:
        agents = [AgentConfig(plays=team.agents or LLM)] * (team.size or default_size)
    for agent in agents:
        if agent.provider is not None and not agent.is_llm:
            raise ConfigurationError(
                f"an agent that plays {agent.plays!r} has a provider",
                why="it does not use a model",
                fix="remove one of the two",
            )
    return agents


def _pairings(
    config: ExperimentConfig, teams: Sequence[str], *, seats: int
) -> tuple[tuple[str, ...], ...]:
    if config.pairings == "all":
        given = tuple(product(teams, repeat=seats))
    else:
        given = config.pairings or (tuple(teams),)
    for pairing in given:
        for team in pairing:
            if team not in teams:
                raise UnknownNameError("team", team, teams)
        if len(pairing) != len(given[0]) or not pairing:
            raise ConfigurationError(
                f"the pairing {list(pairing)} has a different number of seats than "
                f"{list(given[0])}",
                fix="name one team for every seat in each pairing",
            )
    if config.seats == "paired":
        given = tuple(pairing[n:] + pairing[:n] for pairing in given for n in range(len(pairing)))
    return tuple(dict.fromkeys(given))


def _parameters(provider: ProviderConfig) -> SamplingParameters:
    extra: dict[str, Any] = {}
    if provider.include_reasoning is not None:
        extra["include_reasoning"] = provider.include_reasoning
    return SamplingParameters(
        temperature=provider.temperature,
        top_p=provider.top_p,
        top_k=provider.top_k,
        max_tokens=provider.max_tokens,
        extra=extra,
    )


def _require_whole(
    name: str, value: Any, *, origin: str, least: float = -math.inf, most: float = math.inf
) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        limits = "" if most == math.inf else f" from {least} to {most:,}"
        raise ConfigurationError(
            f"{origin}: 'game.{name}' is {value!r}", fix=f"give a whole number{limits}"
        )


def _require_known_keys(block: dict[str, Any], fields: Any, *, origin: str) -> None:
    known = sorted([*fields, *_OURS])
    for key in block:
        if key not in known:
            close = nearest(str(key), known)
            hint = f"did you mean {close!r}?" if close else f"known: {', '.join(known)}"
            raise ConfigurationError(
                f"{origin}: unknown key 'game.{key}'; {hint}",
                fix="docs/reference.md lists the keys of each game",
            )
