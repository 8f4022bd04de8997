"""What an experiment is configured with: RedBlackBench's YAML, and what we add to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from enginehouse.arena.configuration import DeliberationConfig
from enginehouse.arena.records import HUMAN, LLM
from enginehouse.core.errors import UnknownNameError
from enginehouse.core.strict_model import StrictModel
from enginehouse.engines.options import ServerOptions
from enginehouse.engines.registry import ENGINES

LOCAL_URL = "http://localhost:8000/v1"
MOST_MATCHES = 1_000_000
"""In an experiment, whose matches are listed in memory."""
MOST_AGENTS = 1_000
"""In a team."""


class ProviderConfig(StrictModel):
    """Who answers for a team, and how it is sampled."""

    type: str | None = None
    """An engine, as listed by `enginehouse engines`: vllm, openai, anthropic, openrouter …"""
    model: str | None = None
    """The model, as its server lists it: a name, a path, or a LoRA adapter. With `serve`, what
    `enginehouse serve` takes."""
    base_url: str | None = None
    """The server's address; by default http://localhost:8000/v1, or that of a hosted API."""
    api_key: Annotated[str | None, Field(repr=False)] = None
    """The key. It is not stored with the run, so a variable is better: see `api_key_env`."""
    api_key_env: str | None = None
    """The environment variable with the API key, instead of the engine's own."""
    temperature: Annotated[float, Field(ge=0)] = 0.7
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling; 1 is off."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Only the k most likely tokens; 0 is off."""
    max_tokens: Annotated[int, Field(ge=1)] = 1024
    """The longest answer, in tokens."""
    include_reasoning: bool | None = None
    """Passed through to OpenRouter and vLLM: whether to return the model's reasoning."""
    adapter: Path | None = None
    """The folder of a LoRA adapter of `model`, which the server loads."""
    serve: bool = False
    """Start a server for the model, unless one answers at `base_url`."""
    path: Path | None = None
    """With `serve`: a local checkpoint to use if the model's handle is not found."""
    python: Path | None = None
    """With `serve`: the Python of an existing engine environment."""
    version: str | None = None
    """With `serve`: the engine's version, for a managed environment."""
    variant: Literal["cpu", "cuda"] | None = None
    """With `serve`: the engine's build, for a managed environment."""
    server: ServerOptions = ServerOptions()
    """With `serve`: how the server is started."""

    @field_validator("type")
    @classmethod
    def _known_type(cls, name: str | None) -> str | None:
        if name is not None and name not in ENGINES.names():
            raise UnknownNameError("provider type", name, ENGINES.names())
        return name


class AgentConfig(StrictModel):
    """One member of a team."""

    plays: str = LLM
    """llm, human, or the name of a script."""
    provider: ProviderConfig | None = None
    """The model behind this agent; its keys override the team's."""

    @property
    def is_llm(self) -> bool:
        """Whether a model decides."""
        return self.plays == LLM


class TeamConfig(StrictModel):
    """A team of agents."""

    size: Annotated[int | None, Field(le=MOST_AGENTS)] = None
    """The number of agents; by default that of the list `agents`, or the game's `team_size`."""
    agents: tuple[AgentConfig, ...] | str | None = None
    """llm, human or a script's name, for all agents; or a list of such names and of agents with a
    provider of their own (`{provider: {…}}`). By default all are LLMs."""
    provider: ProviderConfig | None = None
    """The model behind the team; its keys override those of `default_provider`."""

    @field_validator("agents", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [{"plays": agent} if isinstance(agent, str) else agent for agent in value]
        return value

    @model_validator(mode="after")
    def _someone(self) -> Self:
        if (self.size is not None and self.size < 1) or self.agents == ():
            raise ValueError("a team needs at least one agent")
        if isinstance(self.agents, tuple) and self.size not in (None, len(self.agents)):
            raise ValueError(
                f"'agents' lists {len(self.agents)}, but 'size' is {self.size}: leave 'size' out"
            )
        return self


class ExperimentConfig(StrictModel):
    """An experiment: a game, teams, and which of them play how often."""

    experiment_name: str | None = None
    """A name for lists and reports; by default that of the file."""
    output_dir: Path | None = None
    """A folder that the results are copied to, in a subfolder named after the run."""
    num_games: Annotated[int, Field(ge=1, le=MOST_MATCHES)] = 1
    """The number of matches of each pairing; match i has the same seed in every pairing."""
    seed: int | None = None
    """Determines each match's seed; by default `game.seed`, or else 0."""
    default_provider: ProviderConfig | None = None
    """The model behind every team; a team's own provider overrides its keys."""
    game: Mapping[str, Any] = Field(default_factory=dict)
    """`name` (red_black by default), `team_size`, and the game's own settings."""
    team_a: TeamConfig | None = None
    """The team in the first seat."""
    team_b: TeamConfig | None = None
    """The team in the second seat."""
    teams: Mapping[str, TeamConfig] = Field(default_factory=dict)
    """Instead of team_a and team_b: any number of teams, by name."""
    pairings: tuple[tuple[str, ...], ...] | Literal["all"] | None = None
    """Which team sits in which seat, as in [[base, lora], [lora, base]]; or all: every team against
    every team, itself included. By default the teams sit in the order in which they are listed."""
    seats: Literal["fixed", "paired"] = "fixed"
    """paired: every pairing is also played with the seats swapped, on the same seeds."""
    deliberation: DeliberationConfig = DeliberationConfig()
    """How teams of several agents decide."""
    serve: bool = False
    """Set `serve` for every provider whose engine runs here."""
    cassette: str | None = None
    """A run to replay: its answers are reused while the model and prompts match."""
    offline: bool = False
    """Send no requests: use answers from the cassette only."""
    concurrency: Annotated[int, Field(ge=1)] | None = None
    """The largest number of requests in flight per server; by default twice the `max_num_seqs` of
    our own server; otherwise as many as the server accepts, from 64 to 512 (64 for a hosted API).
    """

    @model_validator(mode="before")
    @classmethod
    def _empty_blocks(cls, values: Any) -> Any:
        """`team_b:` with nothing below it is a team with the defaults."""
        if not isinstance(values, Mapping):
            return values
        given: dict[str, Any] = {
            n: {} for n in ("team_a", "team_b") if n in values and values[n] is None
        }
        return {**values, **given}

    @field_validator("pairings", mode="before")
    @classmethod
    def _lists_of_teams(cls, value: Any) -> Any:
        if value in (None, "all"):
            return value
        if isinstance(value, list | tuple) and value:
            lists = all(isinstance(pairing, list | tuple) for pairing in value)
            if lists and all(isinstance(team, str) for pairing in value for team in pairing):
                return value
        raise ValueError("write all, or lists of teams as in [[base, lora], [lora, base]]")

    @property
    def has_humans(self) -> bool:
        """Whether a person is asked at the terminal."""
        teams = (self.team_a, self.team_b, *self.teams.values())
        agents = [team.agents for team in teams if team is not None]
        return HUMAN in agents or any(
            agent.plays == HUMAN
            for listed in agents
            if isinstance(listed, tuple)
            for agent in listed
        )

    @property
    def providers(self) -> tuple[ProviderConfig, ...]:
        """Every provider block."""
        blocks: list[ProviderConfig] = []

        def note(block: ProviderConfig) -> ProviderConfig:
            blocks.append(block)
            return block

        self.with_providers(note)
        return tuple(blocks)

    def with_providers(self, change: Callable[[ProviderConfig], ProviderConfig]) -> Self:
        """The configuration with `change` applied to every provider block."""

        def in_agent(agent: AgentConfig) -> AgentConfig:
            if agent.provider is None:
                return agent
            return agent.model_copy(update={"provider": change(agent.provider)})

        def in_team(team: TeamConfig) -> TeamConfig:
            values: dict[str, Any] = {}
            if team.provider is not None:
                values["provider"] = change(team.provider)
            if isinstance(team.agents, tuple):
                values["agents"] = tuple(map(in_agent, team.agents))
            return team.model_copy(update=values)

        values: dict[str, Any] = {
            name: in_team(team)
            for name in ("team_a", "team_b")
            if (team := getattr(self, name)) is not None
        }
        if self.default_provider is not None:
            values["default_provider"] = change(self.default_provider)
        if self.teams:
            values["teams"] = {name: in_team(team) for name, team in self.teams.items()}
        return self.model_copy(update=values)

    @field_validator("teams")
    @classmethod
    def _teams_have_names(cls, teams: Mapping[str, TeamConfig]) -> Mapping[str, TeamConfig]:
        if any(not name.strip() for name in teams):
            raise ValueError("a team has no name")
        return teams

    @model_validator(mode="after")
    def _one_way_to_name_teams(self) -> Self:
        if self.teams and (self.team_a or self.team_b):
            raise ValueError("give 'teams', or 'team_a' and 'team_b', but not both")
        return self

    @model_validator(mode="after")
    def _somebody_answers(self) -> Self:
        if self.offline and self.cassette is None:
            raise ValueError("'offline' needs recorded answers: name a run as 'cassette'")
        return self


_OF_THE_SERVER = ("model", "base_url", "api_key", "api_key_env", "include_reasoning", "adapter")
_OF_THE_START = ("serve", "path", "python", "version", "variant", "server")


def merge_providers(*blocks: ProviderConfig | None) -> ProviderConfig:
    """The blocks as one, later keys over earlier ones.

    A block of another `type` inherits how it is sampled, but not whom it asks; one with another
    `base_url` inherits no key, which would otherwise be sent to a stranger.
    """
    values: dict[str, Any] = {}
    for block in blocks:
        if block is None:
            continue
        own = {name: getattr(block, name) for name in block.model_fields_set}
        if own.get("type", values.get("type")) != values.get("type") and "type" in values:
            values = {k: v for k, v in values.items() if k not in _OF_THE_SERVER + _OF_THE_START}
        elif own.get("base_url", values.get("base_url")) != values.get("base_url"):
            values = {k: v for k, v in values.items() if k not in ("api_key", "api_key_env")}
        values |= own
    return ProviderConfig(**values)
