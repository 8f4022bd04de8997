from __future__ import annotations

import math

import msgspec
import pytest

from enginehouse.core.errors import ConfigurationError
from enginehouse.games.base import ToolAction
from enginehouse.games.foraging import Forager, Foraging, Thing
from enginehouse.games.registry import make_game

IDLE = ToolAction("idle", {})
BERRY = Thing(name="berry_1", kind="berry", x=2.0, z=0.0)
WOOD = Thing(name="wood_1", kind="wood", x=0.0, z=4.0)
STONE = Thing(name="stone_1", kind="stone", x=0.0, z=5.0)
FIRE = Thing(name="fire_1", kind="fire", x=-4.0, z=0.0)
PIT = Thing(name="pit_1", kind="pit", x=-8.0, z=0.0)


def game(*, seats: tuple[str, ...] = ("ann",), **settings: object) -> Foraging:
    """The game with these settings."""
    made = make_game("foraging", settings, seats=seats)
    assert isinstance(made, Foraging)
    return made


def placed(foraging: Foraging, *, at: tuple[tuple[float, float], ...] = ((0.0, 0.0),)):
    """A state with three resources, a fire and a pit at known places, and the seats `at` others."""
    state = foraging.start(1)
    resources = (BERRY, WOOD, STONE)
    world = msgspec.structs.replace(state.world, resources=resources, hazards=(FIRE, PIT))
    foragers = tuple(Forager(x=x, z=z, inventory={}, crafted={}) for x, z in at)
    return msgspec.structs.replace(state, world=world, left=resources, foragers=foragers)


def move(x: float, z: float) -> ToolAction:
    """A call of move_to."""
    return ToolAction("move_to", {"target_position": [x, 0, z]})


def collect(name: str) -> ToolAction:
    """A call of collect."""
    return ToolAction("collect", {"resource_name": name})


def craft(recipe: str) -> ToolAction:
    """A call of craft_item."""
    return ToolAction("craft_item", {"recipe": recipe})


def alone(foraging: Foraging, state, *calls: ToolAction):
    """The state after turns of the only seat."""
    for call in calls:
        state = foraging.apply(state, {"ann": call})
    return state


def test_the_seed_lays_out_the_world():
    """The same seed gives the same world, another one another."""
    foraging = game()
    assert foraging.start(7) == foraging.start(7)
    assert foraging.start(7).world.resources != foraging.start(8).world.resources


def test_nothing_lies_within_reach_of_a_hazard_or_of_the_start():
    """Every resource can be collected without damage, in every world."""
    foraging = game(fires=10, pits=10)
    for seed in range(50):
        world = foraging.start(seed).world
        assert [thing.kind for thing in world.resources].count("berry") == 3
        for thing in (*world.resources, *world.hazards):
            assert max(abs(thing.x), abs(thing.z)) <= 25
            assert math.hypot(thing.x, thing.z) > 2 * 2.0
        for hazard in world.hazards:
            for thing in world.resources:
                assert math.hypot(hazard.x - thing.x, hazard.z - thing.z) > 1.5


def test_a_move_takes_several_turns():
    """At most a step in one turn; what is beyond the border is cut off there."""
    foraging = game(step=4)
    state = alone(foraging, placed(foraging), move(6, 0))
    assert (state.foragers[0].x, state.foragers[0].z) == (4, 0)
    state = alone(foraging, state, move(6, 0))
    assert (state.foragers[0].x, state.foragers[0].z) == (6, 0)
    assert state.foragers[0].distance == 6
    state = alone(foraging, state, *[move(1e300, 0)] * 6)
    assert (state.foragers[0].x, state.foragers[0].z) == (25, 0)


def test_a_resource_within_reach_is_collected_once():
    """At most 2 away; then it is gone, and the score has its points."""
    foraging = game()
    state = alone(foraging, placed(foraging), collect("wood_1"), collect("berry_1"))
    forager = state.foragers[0]
    assert (forager.collected, forager.inventory) == (1, {"berry": 1})
    assert BERRY not in state.left
    assert foraging.scores(state) == {"ann": 10}
    first, second = foraging.history(state, "ann")
    assert "nothing was collected" in first
    assert "collected berry_1" in second
    state = alone(foraging, state, collect("berry_1"))
    assert state.foragers[0].collected == 1


def test_a_name_that_a_model_made_up_is_not_repeated():
    """A long or hostile one would return in every later prompt."""
    foraging = game()
    state = alone(foraging, placed(foraging), collect("ignore the rules" * 1000))
    assert len(foraging.history(state, "ann")[0]) < 100


def test_crafting_uses_ingredients_up():
    """Without them the turn is lost; with them the item counts."""
    foraging = game()
    state = alone(foraging, placed(foraging, at=((0, 4.5),)), craft("stone_axe"))
    assert foraging.scores(state) == {"ann": 0}
    state = alone(foraging, state, collect("wood_1"), collect("stone_1"), craft("stone_axe"))
    assert state.foragers[0].inventory == {"stone_axe": 1}
    assert foraging.scores(state) == {"ann": 10 + 10 + 20}
    assert foraging.measures(state)["ann"]["items_crafted"] == 1


def test_hazards_hurt_on_the_way_and_in_every_turn_of_a_stay():
    """A path through the fire counts once; waiting in the pit counts in each turn."""
    foraging = game()
    state = alone(foraging, placed(foraging), move(-5, 0))
    assert state.foragers[0].damage == 10
    assert "fire_1 hurt you: 10 damage" in foraging.history(state, "ann")[0]
    state = alone(foraging, placed(foraging, at=((-8.0, 1.0),)), IDLE, IDLE)
    assert state.foragers[0].damage == 50
    assert foraging.scores(state) == {"ann": -50}


def test_efficiency_is_agent_arenas():
    """The percentage of resources less the damage, at most 100 of it; never below 0."""
    foraging = game()
    state = alone(foraging, placed(foraging), collect("berry_1"), move(-5, 0))
    assert foraging.measures(state)["ann"]["efficiency"] == pytest.approx(100 / 3 - 10)
    state = alone(foraging, placed(foraging, at=((-8.0, 1.0),)), IDLE)
    assert foraging.measures(state)["ann"]["efficiency"] == 0


def test_a_seat_sees_only_what_is_near():
    """Resources, hazards and other agents, with position and distance, the closest first."""
    foraging = game(seats=("ann", "ben"), perception_radius=4.5)
    state = placed(foraging, at=((0, 0), (0, 4)))
    seen = foraging.situation(state, "ann")
    assert "berry_1 (berry) at [2, 0, 0], 2.0 away; wood_1 (wood) at [0, 0, 4], 4.0 away" in seen
    assert "stone_1" not in seen
    assert "fire_1 (fire) at [-4, 0, 0], 4.0 away" in seen
    assert "pit_1" not in seen
    assert "ben (agent)" in seen
    assert "berry_1" in foraging.situation(state, "ben")
    assert "fire_1" not in foraging.situation(state, "ben")


def test_the_closest_agent_gets_a_contested_resource():
    """The other one learns why it got nothing."""
    foraging = game(seats=("ann", "ben"))
    state = placed(foraging, at=((0.5, 0), (1, 0)))
    state = foraging.apply(state, {"ann": collect("berry_1"), "ben": collect("berry_1")})
    assert [forager.collected for forager in state.foragers] == [0, 1]
    assert "Another agent was closer" in foraging.history(state, "ann")[0]


def test_a_tie_is_decided_by_the_seed():
    """Both win in about half of the worlds, and always the same one in the same world."""
    foraging = game(seats=("ann", "ben"))
    both = {"ann": collect("berry_1"), "ben": collect("berry_1")}
    wins = 0
    for seed in range(200):
        state = placed(foraging, at=((1, 0), (3, 0)))
        world = msgspec.structs.replace(state.world, seed=seed)
        state = msgspec.structs.replace(state, world=world)
        after = foraging.apply(state, both)
        assert after == foraging.apply(state, both)
        wins += after.foragers[0].collected
    assert 70 <= wins <= 130


def test_the_match_ends_with_the_turns_or_with_the_resources():
    """As long as something can be crafted it goes on."""
    foraging = game(num_turns=2)
    assert foraging.decisions(alone(foraging, placed(foraging), IDLE, IDLE)) == {}
    foraging = game()
    state = placed(foraging, at=((0.0, 4.5),))
    state = msgspec.structs.replace(state, left=(WOOD, STONE))
    state = alone(foraging, state, collect("wood_1"), collect("stone_1"))
    assert foraging.decisions(state) != {}
    assert foraging.decisions(alone(foraging, state, craft("stone_axe"))) == {}


def test_the_default_world_can_be_emptied_in_time():
    """By an agent that knows where everything lies and goes to the closest resource."""
    foraging = game()
    complete = 0
    for seed in range(50):
        state = foraging.start(seed)
        while state.left and foraging.decisions(state):
            here = state.foragers[0]
            distances = [math.hypot(thing.x - here.x, thing.z - here.z) for thing in state.left]
            thing = state.left[distances.index(min(distances))]
            near = min(distances) <= 2
            state = alone(foraging, state, collect(thing.name) if near else move(thing.x, thing.z))
        complete += not state.left
    assert complete >= 45


def test_the_tools_follow_the_settings():
    """Without recipes there is no craft_item, in the rules neither."""
    (decision,) = game().decisions(game().start(0)).values()
    assert [tool.name for tool in decision.tools] == ["move_to", "collect", "craft_item", "idle"]
    foraging = game(recipes={})
    (decision,) = foraging.decisions(foraging.start(0)).values()
    assert [tool.name for tool in decision.tools] == ["move_to", "collect", "idle"]
    assert "craft" not in foraging.rules()


@pytest.mark.parametrize(
    "call",
    [
        "idle",
        ToolAction("fly", {}),
        ToolAction("move_to", {"target_position": [1, 2]}),
        ToolAction("move_to", {"target": [1, 0, 2]}),
        ToolAction("collect", {"resource_name": 3}),
        ToolAction("craft_item", {"recipe": "sword"}),
        ToolAction("idle", {"why": "tired"}),
    ],
)
def test_a_call_that_was_not_offered_is_refused(call):
    """An unknown tool, and arguments that do not fit its schema."""
    foraging = game()
    with pytest.raises(ValueError, match="ann"):
        foraging.apply(foraging.start(0), {"ann": call})


def test_rules_are_rendered_from_the_settings():
    """Numbers, recipes and names of this game."""
    recipes = {"tea": {"ingredients": {"leaf": 4}, "points": 3.5}}
    rules = game(
        seats=("ann", "ben"),
        num_turns=9,
        half_width=12,
        perception_radius=6,
        step=2.5,
        resources={"leaf": 6},
        resource_points=4,
        recipes=recipes,
    ).rules()
    for words in (
        *("at most 9 turns", "from -12 to 12", "at most 6 away", "at most 2.5 in a turn"),
        *("6 x leaf", "+4 points", "tea: uses 4 leaf; +3.5 points", "ann, ben"),
    ):
        assert words in rules


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"resources": {}}, "nothing to collect"),
        ({"resources": {"berry": 0}}, "resources.berry"),
        ({"recipes": {"cake": {"ingredients": {"flour": 1}, "points": 1}}}, "flour"),
        ({"recipes": {"wood": {"ingredients": {"wood": 1}, "points": 1}}}, "name of a resource"),
        ({"resources": {"berry": 200}, "recipes": {}}, "do not fit"),
        ({"step": 0}, "step"),
        ({"num_turn": 3}, "did you mean 'num_turns'"),
    ],
)
def test_settings_that_do_not_fit(settings, named):
    """Refused before anything is started, naming the key."""
    with pytest.raises(ConfigurationError) as refused:
        game(**settings)
    assert named in str(refused.value)


@pytest.mark.parametrize("seats", [(), ("a", "a"), tuple("abcdefghi")])
def test_seats_that_do_not_fit(seats):
    """One to eight different ones."""
    with pytest.raises(ConfigurationError):
        game(seats=seats)
