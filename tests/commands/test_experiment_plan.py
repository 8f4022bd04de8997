"""Configurations of experiments, and the matches that they stand for."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support import redblackbench_files

from enginehouse.arena.records import AgentSpec, ExperimentSpec
from enginehouse.commands.experiment_configuration import ExperimentConfig
from enginehouse.commands.experiment_plan import ExperimentPlan, plan_experiment
from enginehouse.core.errors import ConfigurationError, UnknownNameError
from enginehouse.deployment.configuration import parse, read_yaml

EVERYTHING = redblackbench_files.everything()
VLLM = {"type": "vllm", "model": "base"}


def plan(values: dict[str, Any]) -> ExperimentPlan:
    """What a file with these values plays."""
    config = parse(ExperimentConfig, values, origin="a.yaml")
    return plan_experiment(config, origin="a.yaml")


def spec(**values: Any) -> ExperimentSpec:
    """The matches of a configuration with one vLLM as default provider."""
    return plan({"default_provider": VLLM, **values}).spec


def test_there_are_forty_of_redblackbenchs_configurations():
    """As many as the project has; 32 have neither multipliers nor a default provider."""
    assert len(EVERYTHING) == 40
    bare = [v for v in EVERYTHING.values() if "default_provider" not in v]
    assert len([v for v in bare if "multipliers" not in v["game"]]) == 32


@pytest.mark.parametrize("name", EVERYTHING)
def test_every_configuration_of_redblackbench_is_planned(name: str):
    """Teams, sizes, rounds and models are those of the file."""
    values = EVERYTHING[name]
    planned = plan(values)
    assert planned.spec.name == values["experiment_name"]
    assert planned.spec.matches == values["num_games"]
    assert planned.spec.pairings == (("team_a", "team_b"),)
    assert planned.spec.settings["num_rounds"] == values["game"]["num_rounds"]
    for team in planned.spec.teams:
        own = values[team.name].get("provider", {})
        default = values.get("default_provider", {})
        assert len(team.agents) == values[team.name]["size"]
        (model,) = {agent.model for agent in team.agents}
        assert model is not None
        assert planned.providers[model].model == own.get("model", default.get("model"))
        (found,) = (m for m in planned.spec.models if m.name == model)
        temperature = own.get("temperature", default.get("temperature", 0.7))
        assert found.parameters.temperature == temperature
        reasoning = own.get("include_reasoning", default.get("include_reasoning"))
        assert found.parameters.extra.get("include_reasoning") == reasoning


@pytest.mark.parametrize(
    ("name", "best"),
    [("vllm_qwen3_quick_test", 24), ("vllm_qwen3_14b", 78), ("vllm_base_vs_lora", 78)],
)
def test_the_documented_files_have_the_known_maxima(name: str, best: float):
    """The three YAML files of the document, unchanged."""
    values = read_yaml(redblackbench_files.documented(name))
    game = plan(values).game
    assert game.welfare(game.start(0)) == (0, best)


def test_the_defaults_are_redblackbenchs():
    """Five agents a team, ten rounds, the original multipliers, seed 0."""
    planned = spec()
    assert [len(team.agents) for team in planned.teams] == [5, 5]
    assert planned.settings["num_rounds"] == 10
    assert planned.settings["multipliers"] == {"5": 3, "8": 5, "10": 10}
    assert planned.seed == 0
    (model,) = planned.models
    assert (model.parameters.temperature, model.parameters.max_tokens) == (0.7, 1024)


def test_the_seed_is_the_experiments_or_the_games():
    """The file's own place for it was `game.seed`."""
    assert spec(game={"seed": 42}).seed == 42
    assert spec(game={"seed": 42}, seed=7).seed == 7


def test_a_team_without_keys_has_the_defaults():
    """`team_b:` with nothing below it."""
    planned = spec(team_a={"size": 2}, team_b=None, game={"team_size": 3})
    assert [len(team.agents) for team in planned.teams] == [2, 3]


def test_teams_sit_in_every_way_that_is_asked_for():
    """In the order listed; swapped; each against each and itself; or as named."""
    teams = {"teams": {"base": {}, "lora": {"provider": {"model": "lora"}}}}
    both = (("base", "lora"), ("lora", "base"))
    assert spec(**teams).pairings == both[:1]
    assert spec(**teams, seats="paired").pairings == both
    every = (("base", "base"), ("base", "lora"), ("lora", "base"), ("lora", "lora"))
    assert spec(**teams, pairings="all").pairings == every
    named = spec(**teams, pairings=[["lora", "lora"], ["base", "lora"]], seats="paired")
    assert named.pairings == (("lora", "lora"), *both)
    assert named.seats == ("team_a", "team_b")


def test_equal_providers_are_one_model():
    """Differently sampled ones are two, though the server is the same."""
    warm = {"provider": {"temperature": 1.0}}
    planned = spec(teams={"one": {}, "two": {}, "warm": warm}, pairings="all")
    assert [model.name for model in planned.models] == ["base", "base (2)"]
    assert [team.agents[0].model for team in planned.teams] == ["base", "base", "base (2)"]
    elsewhere = {"provider": {"type": "hf", "model": "base"}}
    planned = spec(team_b=elsewhere)
    assert [model.name for model in planned.models] == ["base", "base (hf)"]


def test_a_key_that_says_the_same_again_makes_no_difference():
    """A team may name the default's model."""
    planned = spec(team_b={"provider": {"model": "base", "temperature": 0.7}})
    assert len(planned.models) == 1


def test_serve_is_for_engines_that_run_here():
    """A hosted API in the same experiment is asked where it is."""
    hosted = {"provider": {"type": "openai", "model": "gpt"}}
    planned = plan({"default_provider": VLLM, "team_b": hosted, "serve": True})
    assert {name: p.serve for name, p in planned.providers.items()} == {"base": True, "gpt": False}


def test_agents_of_one_team_may_differ():
    """A script, a human, and a model of their own."""
    agents = ["human", "llm", "tit for tat", {"provider": {"model": "other"}}]
    planned = spec(team_a={"agents": agents}, team_b={"agents": "always RED", "size": 2})
    first, second = planned.teams
    assert first.agents == (
        AgentSpec(kind="human"),
        AgentSpec(kind="llm", model="base"),
        AgentSpec(kind="tit for tat"),
        AgentSpec(kind="llm", model="other"),
    )
    assert second.agents == (AgentSpec(kind="always RED"),) * 2


def test_scripts_need_no_provider():
    """And leave no model to ask."""
    scripted = {"agents": "random", "size": 1}
    planned = plan({"team_a": scripted, "team_b": scripted})
    assert planned.providers == {}


def test_another_type_inherits_only_how_it_is_sampled():
    """Neither the address nor the key of the default provider goes to another vendor."""
    default = {
        "type": "vllm",
        "model": "m",
        "base_url": "http://127.0.0.1:1/v1",
        "api_key": "secret",
        "temperature": 0.3,
    }
    other = {"provider": {"type": "openai", "model": "gpt"}}
    planned = plan({"default_provider": default, "team_b": other})
    openai = planned.providers["gpt"]
    assert (openai.type, openai.base_url, openai.api_key) == ("openai", None, None)
    assert openai.temperature == 0.3


def test_another_address_inherits_no_key():
    """It would be sent to whoever listens there."""
    default = {"type": "vllm", "model": "m", "api_key": "secret"}
    other = {"provider": {"base_url": "http://127.0.0.1:2/v1"}}
    planned = plan({"default_provider": default, "team_b": other})
    assert [p.api_key for p in planned.providers.values()] == ["secret", None]
    assert "secret" not in repr(planned.providers)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown provider": ({"default_provider": {"type": "vlm"}}, "did you mean 'vllm'"),
    "an unknown key": ({"num_game": 1}, "did you mean 'num_games'"),
    "an unknown key of a provider": ({"team_a": {"provider": {"modle": "x"}}}, "'model'"),
    "an unknown key of an agent": ({"team_a": {"agents": [{"play": "llm"}]}}, "'plays'"),
    "an unknown key of the game": ({"game": {"num_round": 3}}, "'num_rounds'"),
    "an unknown key of ours in the game": ({"game": {"team_sise": 3}}, "'team_size'"),
    "an unknown game": ({"game": {"name": "red_blak"}}, "'red_black'"),
    "an unknown script": ({"team_a": {"agents": "always red"}}, "BLACK, RED"),
    "an unknown team": ({"teams": {"a": {}, "b": {}}, "pairings": [["a", "c"]]}, "'c'"),
    "a team without agents": ({"team_a": {"size": 0}}, "at least one agent"),
    "no agents": ({"team_a": {"agents": []}}, "at least one agent"),
    "a team size of 0": ({"game": {"team_size": 0}}, "team_size"),
    "two sizes": ({"team_a": {"size": 3, "agents": ["llm"]}}, "leave 'size' out"),
    "multipliers beyond the rounds": (
        {"game": {"num_rounds": 3, "multipliers": {5: 3}}},
        "round 5",
    ),
    "one team too many": ({"teams": {"a": {}, "b": {}, "c": {}}}, "two"),
    "teams in both ways": ({"teams": {"a": {}, "b": {}}, "team_a": {}}, "not both"),
    "pairings of different length": (
        {"teams": {"a": {}, "b": {}}, "pairings": [["a", "b"], ["a"]]},
        "number of seats",
    ),
    "pairings that are no lists": ({"pairings": "every"}, "[[base, lora]"),
    "a script with a provider": (
        {"team_a": {"agents": [{"plays": "random", "provider": {"model": "x"}}]}},
        "has a provider",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_refused_and_named(name: str):
    """With the nearest known name where there is one."""
    values, says = REFUSED[name]
    with pytest.raises(ConfigurationError) as error:
        spec(**values)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "team_a"),
        ({"default_provider": {"type": "vllm"}}, "names no model"),
        ({"default_provider": {"model": "m"}}, "team_a"),
    ],
)
def test_whoever_answers_is_named(values: dict[str, Any], says: str):
    """A type and a model, of the team or by default."""
    with pytest.raises(ConfigurationError, match=says):
        plan(values)


def test_names_are_unknown_names():
    """So that programs can list the known ones."""
    with pytest.raises(UnknownNameError) as error:
        spec(team_a={"agents": "tit for tatt"})
    assert "tit for tat" in error.value.known


@pytest.mark.parametrize(
    "values",
    [
        {"num_games": 10**20},
        {"num_games": 10**6, "seats": "paired"},
        {"game": {"team_size": 10**9}},
        {"team_a": {"size": 10**9}},
        {"game": {"num_rounds": 10**9}},
        {"game": {"name": "public_goods", "num_rounds": 10**9}},
        {"game": {"name": "foraging", "num_turns": 10**9}},
        {"teams": {"": {}, "b": {}}},
        {"teams": {" ": {}, "b": {}}},
    ],
)
def test_absurd_numbers_and_teams_without_a_name_are_refused(values: dict[str, Any]):
    """Before memory runs out."""
    with pytest.raises(ConfigurationError):
        spec(**values)
