"""Agent Arena's foraging scenario: collect resources, craft items, avoid hazards.

Distances, damages and the efficiency score are those of its scene; the world is laid out by the
match's seed, time passes in turns, and several agents may be in it. Positions are [x, y, z] as in
Agent Arena; the ground is flat (y = 0), and all positions are rounded to 0.1.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final

import msgspec
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.strict_model import StrictModel
from enginehouse.core.tool_calls import ToolDefinition
from enginehouse.games.base import (
    MOST_TURNS,
    Action,
    Decision,
    GameInfo,
    MeasureInfo,
    ToolAction,
    UseTool,
)
from enginehouse.tools.specification import ToolSpec

MOST_SEATS: Final = 8
COLLECTION_RADIUS: Final = 2.0
HAZARD_RADIUS: Final = 1.5
DAMAGE: Final = {"fire": 10.0, "pit": 25.0}
_CELL: Final = 4.0  # at most one object lies in a square of this size
_JITTER: Final = 1.0  # so that two objects are never closer than _CELL - 2 * _JITTER
_CLEAR: Final = 1  # cells around the centre, where the agents start, stay empty

Point = tuple[float, float]
"""x and z."""
PositiveFloat = Annotated[float, Field(gt=0)]


class Recipe(StrictModel):
    """An item that can be crafted anywhere."""

    ingredients: Annotated[dict[str, PositiveInt], Field(min_length=1)]
    """By resource type, how many are used up."""
    points: float
    """Added to the score for each item."""


class ForagingSettings(StrictModel):
    """The world, the points in it, and the length of a match."""

    num_turns: Annotated[int, Field(ge=1, le=MOST_TURNS)] = 40
    """Turns after which the match ends, if resources are left."""
    half_width: Annotated[float, Field(ge=8, le=200)] = 25
    """The world reaches from minus this to plus this, in x and in z."""
    perception_radius: PositiveFloat = 15
    """How far an agent sees."""
    step: PositiveFloat = 5
    """How far an agent moves in one turn."""
    resources: dict[str, PositiveInt] = Field(default={"berry": 3, "wood": 2, "stone": 2})
    """By type, how many lie in the world."""
    resource_points: float = 10
    """Added to the score for each collected resource."""
    fires: NonNegativeInt = 2
    """Fires in the world."""
    pits: NonNegativeInt = 1
    """Pits in the world."""
    recipes: dict[str, Recipe] = Field(
        default={
            "jam": Recipe(ingredients={"berry": 2}, points=10),
            "stone_axe": Recipe(ingredients={"wood": 1, "stone": 1}, points=20),
        }
    )
    """What can be crafted, by name: `ingredients` (how many of each type) and `points`; {} takes
    crafting out of the game."""

    @model_validator(mode="after")
    def _playable(self) -> ForagingSettings:
        if not self.resources:
            raise ValueError("'resources' is empty: there is nothing to collect")
        for name, recipe in self.recipes.items():
            if unknown := sorted(recipe.ingredients.keys() - self.resources.keys()):
                raise ValueError(f"'recipes.{name}' needs {unknown[0]}, which is not a resource")
            if name in self.resources:
                raise ValueError(f"'recipes.{name}' has the name of a resource")
        objects, places = sum(self.resources.values()) + self.fires + self.pits, len(_cells(self))
        if objects > places:
            raise ValueError(
                f"{objects} resources and hazards do not fit: a world of half_width "
                f"{self.half_width:g} has room for {places}"
            )
        return self


class Thing(msgspec.Struct, frozen=True, kw_only=True):
    """A resource or a hazard: its unique name, its type and where it lies."""

    name: str
    kind: str
    x: float
    z: float


class World(msgspec.Struct, frozen=True, kw_only=True):
    """What the seed laid out; the same for the whole match."""

    seed: int
    resources: tuple[Thing, ...]
    hazards: tuple[Thing, ...]


class Forager(msgspec.Struct, frozen=True, kw_only=True):
    """One seat: where it is, what it has and what happened to it.

    `log` tells each past turn in words, as the seat perceived it.
    """

    x: float
    z: float
    inventory: Mapping[str, int]
    crafted: Mapping[str, int]
    collected: int = 0
    damage: float = 0.0
    distance: float = 0.0
    actions: tuple[ToolAction, ...] = ()
    log: tuple[str, ...] = ()


class State(msgspec.Struct, frozen=True, kw_only=True):
    """The world, the resources that are left in it, and every seat in order."""

    world: World
    left: tuple[Thing, ...]
    foragers: tuple[Forager, ...]


class Foraging:
    """Agent Arena's foraging scenario. See the protocol `Game` for the methods."""

    Settings: ClassVar[type[StrictModel]] = ForagingSettings
    info: ClassVar[GameInfo] = GameInfo(
        name="foraging",
        version=1,
        description="agents with limited sight collect resources, craft items and avoid hazards",
        least_seats=1,
        most_seats=MOST_SEATS,
        teams=False,
        measures=(
            MeasureInfo(name="resources_collected", description="resources collected", lowest=0),
            MeasureInfo(name="items_crafted", description="items crafted", lowest=0),
            MeasureInfo(name="damage_taken", description="damage by hazards", lowest=0),
            MeasureInfo(name="distance_traveled", description="distance moved", lowest=0),
            MeasureInfo(
                name="efficiency",
                description="Agent Arena's score: the percentage of all resources that the agent "
                "collected, less the damage it took",
                lowest=0,
                highest=100,
            ),
        ),
    )

    def __init__(self, settings: ForagingSettings, *, seats: tuple[str, ...]) -> None:
        if not 1 <= len(seats) <= MOST_SEATS or len(set(seats)) != len(seats):
            raise ConfigurationError(
                f"foraging has 1 to {MOST_SEATS} seats with different names, "
                f"not {', '.join(seats) or 'none'}",
                fix=f"describe between 1 and {MOST_SEATS} teams of one agent",
            )
        self._settings = settings
        self._seats = seats
        self._tools = {tool.name: ToolSpec.of(tool) for tool in _tools(settings)}
        self._decision = UseTool(tools=tuple(tool.definition() for tool in self._tools.values()))

    def rules(self) -> str:
        """The rules in words, rendered from the settings; the same for every seat and turn."""
        settings = self._settings
        width = f"{settings.half_width:g}"
        kinds = ", ".join(f"{number} x {kind}" for kind, number in settings.resources.items())
        others = (
            f"The agents in it are {', '.join(self._seats)}; all act at the same time. If several "
            "collect the same resource in one turn, the closest one gets it; a tie is decided by "
            "chance."
            if len(self._seats) > 1
            else "You are alone in it."
        )
        recipes = "".join(
            f"- {name}: uses "
            + ", ".join(f"{number} {kind}" for kind, number in recipe.ingredients.items())
            + f"; {recipe.points:+.12g} points.\n"
            for name, recipe in settings.recipes.items()
        )
        crafting = f"Items can be crafted anywhere from collected resources:\n{recipes}\n"
        return (
            "You are an agent in a wilderness. Collect as many points as you can in at most "
            f"{settings.num_turns} turns; in each turn you call exactly one tool.\n\n"
            f"The world is flat. Positions are [x, y, z] with y = 0, x and z from -{width} to "
            f"{width}. You see what is at most {settings.perception_radius:g} away. {others}\n\n"
            f"Resources in the world: {kinds}. Each one that you collect gives "
            f"{settings.resource_points:+.12g} points. You can collect what is at most "
            f"{COLLECTION_RADIUS:g} away. You move at most {settings.step:g} in a turn, in a "
            "straight line.\n\n"
            f"{crafting if recipes else ''}"
            f"Hazards: coming within {HAZARD_RADIUS:g} of a fire gives {DAMAGE['fire']:g} damage, "
            f"of a pit {DAMAGE['pit']:g}, on the way as well, and again in every turn that you "
            "stay. Damage is subtracted from your points.\n\n"
            f"The game ends early when nothing is left to collect{' or craft' if recipes else ''}."
        )

    def start(self, seed: int) -> State:
        """The world of this seed, with the seats around its centre."""
        world = _laid_out(self._settings, seed)
        seats = len(self._seats)
        radius = 0.0 if seats == 1 else HAZARD_RADIUS
        foragers = tuple(
            Forager(
                x=_rounded(radius * math.cos(2 * math.pi * n / seats)),
                z=_rounded(radius * math.sin(2 * math.pi * n / seats)),
                inventory={},
                crafted={},
            )
            for n in range(seats)
        )
        return State(world=world, left=world.resources, foragers=foragers)

    def decisions(self, state: State) -> Mapping[str, Decision]:
        """A call of a tool for every seat, until the turns or what there is to do are used up."""
        if len(state.foragers[0].actions) >= self._settings.num_turns:
            return {}
        craftable = any(
            self._has_ingredients(forager, recipe)
            for forager in state.foragers
            for recipe in self._settings.recipes.values()
        )
        if not state.left and not craftable:
            return {}
        return dict.fromkeys(self._seats, self._decision)

    def history(self, state: State, seat: str) -> tuple[str, ...]:
        """What the seat did in each turn, and what it noticed of the outcome."""
        return state.foragers[self._seats.index(seat)].log

    def situation(self, state: State, seat: str) -> str:
        """Position, inventory, what is in sight, and the question."""
        own = state.foragers[self._seats.index(seat)]
        sight = self._settings.perception_radius
        others = [
            Thing(name=name, kind="agent", x=forager.x, z=forager.z)
            for name, forager in zip(self._seats, state.foragers, strict=True)
            if name != seat
        ]
        inventory = ", ".join(f"{number} {name}" for name, number in own.inventory.items())
        turn, score = len(own.actions) + 1, self.scores(state)[seat]
        lines = [
            f"Turn {turn} of {self._settings.num_turns}.",
            f"You are {seat} at {_written(own.x, own.z)}.",
            f"Score: {score:.12g}. Damage taken: {own.damage:g}.",
            f"Inventory: {inventory or 'empty'}.",
            "Resources in sight: " + _seen(own, state.left, sight=sight),
            "Hazards in sight: " + _seen(own, state.world.hazards, sight=sight),
        ]
        if others:
            lines.append("Agents in sight: " + _seen(own, others, sight=sight))
        lines.append(f"Call one tool: {', '.join(self._tools)}.")
        return "\n".join(lines)

    def apply(self, state: State, actions: Mapping[str, Action]) -> State:
        """The state after one turn: all move, then hazards hurt, then all collect and craft.

        Raises ValueError for a tool that was not offered, and for arguments that do not fit it.
        """
        if not self.decisions(state) or set(actions) != set(self._seats):
            raise ValueError(f"these are not the seats that decide now: {dict(actions)}")
        calls = [self._checked(seat, actions[seat]) for seat in self._seats]
        winners = self._winners(state, calls)
        foragers = tuple(
            self._after_turn(
                state, forager, call, won=[name for name, winner in winners.items() if winner == n]
            )
            for n, (forager, call) in enumerate(zip(state.foragers, calls, strict=True))
        )
        left = tuple(thing for thing in state.left if thing.name not in winners)
        return State(world=state.world, left=left, foragers=foragers)

    def past_actions(self, state: State) -> tuple[Mapping[str, Action], ...]:
        """Every seat's call in each turn."""
        turns = zip(*(forager.actions for forager in state.foragers), strict=True)
        return tuple(dict(zip(self._seats, calls, strict=True)) for calls in turns)

    def scores(self, state: State) -> Mapping[str, float]:
        """Each seat's points for resources and items, less those for damage."""
        settings = self._settings
        return {
            seat: settings.resource_points * forager.collected
            + sum(settings.recipes[item].points * n for item, n in forager.crafted.items())
            - forager.damage
            for seat, forager in zip(self._seats, state.foragers, strict=True)
        }

    def measures(self, state: State) -> Mapping[str, Mapping[str, float | None]]:
        """What `info.measures` describes, by seat."""
        total = len(state.world.resources)
        return {
            seat: {
                "resources_collected": float(forager.collected),
                "items_crafted": float(sum(forager.crafted.values())),
                "damage_taken": forager.damage,
                "distance_traveled": forager.distance,
                "efficiency": max(0.0, 100 * forager.collected / total - min(forager.damage, 100)),
            }
            for seat, forager in zip(self._seats, state.foragers, strict=True)
        }

    def welfare(self, state: State) -> tuple[float, float | None]:
        """The points of all seats; how many can be reached in time depends on the layout."""
        return sum(self.scores(state).values()), None

    def _checked(self, seat: str, action: Action) -> ToolAction:
        if not isinstance(action, ToolAction) or action.name not in self._tools:
            raise ValueError(f"{seat} called none of {', '.join(self._tools)}: {action!r}")
        if problem := self._tools[action.name].check(dict(action.arguments)):
            raise ValueError(f"{seat}: {problem}")
        return action

    def _after_turn(
        self, state: State, forager: Forager, call: ToolAction, *, won: Collection[str]
    ) -> Forager:
        """One seat after its call; `won` are the resources that it gets if it collects them."""
        x, z, outcome = forager.x, forager.z, "You waited."
        collected = forager.collected
        inventory, crafted = Counter(forager.inventory), Counter(forager.crafted)
        match call.name:
            case "move_to":
                x, z = self._destination(forager, call.arguments["target_position"])
                outcome = f"You moved from {_written(forager.x, forager.z)} to {_written(x, z)}."
            case "collect":
                name = call.arguments["resource_name"]
                thing = _within_reach(forager, state.left, name)
                if thing is None:
                    # without the name: a model may have written anything
                    outcome = "No resource of that name is within reach: nothing was collected."
                elif thing.name not in won:
                    outcome = f"Another agent was closer to {name}: nothing was collected."
                else:
                    collected += 1
                    inventory[thing.kind] += 1
                    outcome = f"You collected {name} ({thing.kind})."
            case "craft_item":
                item = call.arguments["recipe"]
                recipe = self._settings.recipes[item]
                if self._has_ingredients(forager, recipe):
                    inventory.subtract(recipe.ingredients)
                    inventory[item] += 1
                    crafted[item] += 1
                    outcome = f"You crafted {item}."
                else:
                    outcome = f"You lack ingredients for {item}: nothing was crafted."
        path = (forager.x, forager.z), (x, z)
        damage = 0.0
        for hazard in state.world.hazards:
            if _distance_to_path(hazard, *path) <= HAZARD_RADIUS:
                damage += DAMAGE[hazard.kind]
                outcome += f" {hazard.name} hurt you: {DAMAGE[hazard.kind]:g} damage."
        return Forager(
            x=x,
            z=z,
            inventory=+inventory,
            collected=collected,
            crafted=crafted,
            damage=forager.damage + damage,
            distance=forager.distance + math.dist(*path),
            actions=(*forager.actions, call),
            log=(*forager.log, f"Turn {len(forager.log) + 1}: {outcome}"),
        )

    def _winners(self, state: State, calls: Sequence[ToolAction]) -> dict[str, int]:
        """By resource that is collected in this turn, who gets it: the closest seat.

        Seats that are equally close are ordered by chance, which the match's seed decides.
        """
        order = list(range(len(calls)))
        turn = len(state.foragers[0].actions)
        random.Random(f"{state.world.seed} {turn}").shuffle(order)
        closest: dict[str, tuple[float, int]] = {}
        for n in order:
            if calls[n].name != "collect":
                continue
            name = calls[n].arguments["resource_name"]
            thing = _within_reach(state.foragers[n], state.left, name)
            if thing is not None:
                distance = _distance(state.foragers[n], thing)
                if name not in closest or distance < closest[name][0]:
                    closest[name] = distance, n
        return {name: n for name, (_, n) in closest.items()}

    def _destination(self, forager: Forager, target: Sequence[float]) -> Point:
        """Where one step towards `target`, or to the border of the world in its place, ends."""
        width = self._settings.half_width
        dx = min(max(target[0], -width), width) - forager.x
        dz = min(max(target[2], -width), width) - forager.z
        part = min(1.0, self._settings.step / (math.hypot(dx, dz) or 1.0))
        return _rounded(forager.x + part * dx), _rounded(forager.z + part * dz)

    def _has_ingredients(self, forager: Forager, recipe: Recipe) -> bool:
        return all(
            forager.inventory.get(kind, 0) >= needed for kind, needed in recipe.ingredients.items()
        )


def _tools(settings: ForagingSettings) -> Iterator[ToolDefinition]:
    yield _tool(
        "move_to",
        f"Move towards a position, at most {settings.step:g} in one turn.",
        target_position={
            "type": "array",
            "items": {"type": "number"},
            "minItems": 3,
            "maxItems": 3,
            "description": "[x, y, z]; y is ignored",
        },
    )
    yield _tool(
        "collect",
        f"Collect a resource that is at most {COLLECTION_RADIUS:g} away.",
        resource_name={"type": "string", "description": "its name, as in 'Resources in sight'"},
    )
    if settings.recipes:
        yield _tool(
            "craft_item",
            "Craft an item from collected resources.",
            recipe={"type": "string", "enum": list(settings.recipes)},
        )
    yield _tool("idle", "Do nothing in this turn.")


def _tool(name: str, description: str, **properties: dict[str, Any]) -> ToolDefinition:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return ToolDefinition(name=name, description=description, parameters=parameters)


def _cells(settings: ForagingSettings) -> list[tuple[int, int]]:
    """The cells that objects may lie in, apart from those at the centre."""
    last = int((settings.half_width - _JITTER) / _CELL)
    across = range(-last, last + 1)
    return [(i, j) for i in across for j in across if max(abs(i), abs(j)) > _CLEAR]


def _laid_out(settings: ForagingSettings, seed: int) -> World:
    """Every object in a cell of its own, so that no hazard makes a resource unreachable."""
    numbers = random.Random(seed)
    kinds = [kind for kind, number in settings.resources.items() for _ in range(number)]
    hazards = ["fire"] * settings.fires + ["pit"] * settings.pits
    things = []
    counts: dict[str, int] = {}
    cells = numbers.sample(_cells(settings), len(kinds) + len(hazards))
    for kind, (i, j) in zip([*kinds, *hazards], cells, strict=True):
        counts[kind] = counts.get(kind, 0) + 1
        x = _rounded(i * _CELL + numbers.uniform(-_JITTER, _JITTER))
        z = _rounded(j * _CELL + numbers.uniform(-_JITTER, _JITTER))
        things.append(Thing(name=f"{kind}_{counts[kind]}", kind=kind, x=x, z=z))
    return World(
        seed=seed, resources=tuple(things[: len(kinds)]), hazards=tuple(things[len(kinds) :])
    )


def _seen(forager: Forager, things: Sequence[Thing], *, sight: float) -> str:
    """Those in sight, the closest first."""
    near = sorted(
        (distance, t.name, t) for t in things if (distance := _distance(forager, t)) <= sight
    )
    return (
        "; ".join(
            f"{t.name} ({t.kind}) at {_written(t.x, t.z)}, {distance:.1f} away"
            for distance, _, t in near
        )
        or "none"
    )


def _within_reach(forager: Forager, things: Sequence[Thing], name: str) -> Thing | None:
    for thing in things:
        if thing.name == name and _distance(forager, thing) <= COLLECTION_RADIUS:
            return thing
    return None


def _distance(forager: Forager, thing: Thing) -> float:
    return math.hypot(thing.x - forager.x, thing.z - forager.z)


def _distance_to_path(thing: Thing, start: Point, end: Point) -> float:
    """From a thing to the closest point of a straight path."""
    dx, dz = end[0] - start[0], end[1] - start[1]
    length = dx * dx + dz * dz
    along = ((thing.x - start[0]) * dx + (thing.z - start[1]) * dz) / length if length else 0.0
    along = min(max(along, 0.0), 1.0)
    return math.hypot(thing.x - start[0] - along * dx, thing.z - start[1] - along * dz)


def _rounded(coordinate: float) -> float:
    return round(coordinate, 1) + 0.0  # never -0.0, which would be written with its sign


def _written(x: float, z: float) -> str:
    return f"[{x:g}, 0, {z:g}]"
