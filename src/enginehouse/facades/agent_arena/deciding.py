"""Decides for the agents of a scene: one observation in, one call of a tool out."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from enginehouse.commands.configuration import ServiceSettings
from enginehouse.core.errors import ServerGoneError, WireError
from enginehouse.core.messages import Message
from enginehouse.core.sampler import Capability, Sampler
from enginehouse.core.sampling import SamplingParameters
from enginehouse.dialects.base import require
from enginehouse.facades.agent_arena.positions import (
    TARGET,
    normal_observation,
    normal_parameters,
)
from enginehouse.runtime.context import Notify
from enginehouse.tools import CallOutcome, Ladder, call_tools
from enginehouse.tools.checking import escape_surrogates
from enginehouse.tools.specification import ToolSpec

SYSTEM: Final = (
    "You control an agent in a 3D world. Positions are [x, y, z]: x and z lie on the ground, y is "
    "the height. In each turn you get what the agent observes, as JSON, and call exactly one tool. "
    "Collect resources; a resource must be closer than 2 to be collected. Stay at least 3 away "
    "from hazards, which cause damage. If an objective is given, it comes first. Begin each call "
    "with your reasoning, in one short sentence."
)
_MOST_AGENTS: Final = 1000  # whose memory is kept
_REASONING: Final = "reasoning"


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent does now: a tool that the scene executes, and why.

    `params` of move_to has `target_position`. With an `error` nothing could be decided, and the
    tool is idle.
    """

    tool: str
    params: dict[str, Any]
    reasoning: str
    error: str | None = None


class _SceneTool(ToolSpec, frozen=True, kw_only=True):
    """A tool that also accepts targets in other spellings, and calls without a reasoning."""

    def check(self, arguments: Any) -> str | None:
        if isinstance(arguments, dict):
            arguments = {_REASONING: "", **normal_parameters(arguments)}
        return ToolSpec.check(self, arguments)


def _tool(name: str, description: str, **properties: dict[str, Any]) -> _SceneTool:
    reasoning = {"type": "string", "maxLength": 300, "description": "why, in one short sentence"}
    properties = {_REASONING: reasoning, **properties}
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return _SceneTool(name=name, description=description, parameters=parameters)


_POINT: Final = {
    "type": "array",
    "items": {"type": "number"},
    "minItems": 3,
    "maxItems": 3,
    "description": "[x, y, z]",
}
TOOLS: Final = (
    _tool("move_to", "Move to a position.", **{TARGET: _POINT}),
    _tool(
        "collect",
        "Collect a resource nearby.",
        resource_name={"type": "string", "description": "its name, as observed"},
    ),
    _tool(
        "craft_item",
        "Craft an item from what the agent carries.",
        recipe={"type": "string", "description": "the recipe's name"},
        ingredients={"type": "array", "items": {"type": "string"}, "description": "items to use"},
    ),
    _tool("idle", "Do nothing in this turn."),
)


@dataclass
class _Memory:
    """What an agent is reminded of: its last actions and experiences."""

    tick: int = -1
    actions: deque[str] = field(default_factory=lambda: deque(maxlen=5))
    experiences: deque[str] = field(default_factory=lambda: deque(maxlen=10))


class Decider:
    """Decides for any number of agents with one model.

    `notify` is told why nothing could be decided, unless the last reason was the same. Raises
    UnsupportedError for a sampler that cannot chat.
    """

    def __init__(
        self, sampler: Sampler, settings: ServiceSettings, *, notify: Notify = lambda _: None
    ) -> None:
        require(sampler.capabilities, Capability.CHAT, "conversations")
        self._sampler = sampler
        self._notify = notify
        self._last_error = ""
        self._system = Message("system", settings.system or SYSTEM)
        self._parameters = SamplingParameters(
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            max_tokens=settings.max_tokens,
        )
        self._ladder = Ladder()
        self._memories: dict[str, _Memory] = {}

    @property
    def agents(self) -> int:
        """How many agents are remembered."""
        return len(self._memories)

    async def decide(self, agent_id: str, observation: Mapping[str, Any], *, tick: int) -> Decision:
        """What the agent does about `observation`. A tick before its last one begins a new game.

        Never raises for a model that fails: the agent idles, and the decision says why.
        """
        memory = self._memory(agent_id)
        if tick < memory.tick:
            memory = self._memories[agent_id] = _Memory()
        memory.tick = tick
        messages = (self._system, Message("user", _question(observation, memory)))
        try:
            result = await call_tools(
                self._sampler,
                messages,
                TOOLS,
                choice="required",
                parameters=self._parameters,
                max_calls=1,
                ladder=self._ladder,
            )
        except (WireError, ServerGoneError) as error:
            return self._idle(error.message, error=str(error))
        if result.outcome is not CallOutcome.CALLED:
            why = f"the model called no tool: {result.why or result.outcome.value}"
            return self._idle(why, error=why)
        (call,) = result.calls
        params = normal_parameters(call.arguments)
        reasoning = str(params.pop(_REASONING, "")) or result.text
        memory.actions.append(f"tick {tick}: {call.name} {_json(params)}")
        return Decision(tool=call.name, params=params, reasoning=reasoning)

    def remember(self, agent_id: str, experience: Mapping[str, Any]) -> int:
        """Keep what happened to an agent for its next decisions; gives how many are kept."""
        memory = self._memory(agent_id)
        memory.experiences.append(_json(normal_observation(experience)))
        return len(memory.experiences)

    def _idle(self, why: str, *, error: str) -> Decision:
        if error != self._last_error:
            self._notify(f"an agent idles: {error}")
        self._last_error = error
        return Decision(tool="idle", params={}, reasoning=why, error=error)

    def _memory(self, agent_id: str) -> _Memory:
        if agent_id not in self._memories and len(self._memories) >= _MOST_AGENTS:
            del self._memories[next(iter(self._memories))]
        return self._memories.setdefault(agent_id, _Memory())


def _question(observation: Mapping[str, Any], memory: _Memory) -> str:
    parts = []
    if memory.experiences:
        parts.append("What happened to you lately:\n" + "\n".join(memory.experiences))
    if memory.actions:
        parts.append("Your last actions:\n" + "\n".join(memory.actions))
    parts.append("You observe:\n" + _json(normal_observation(observation)))
    parts.append("Call one tool.")
    return "\n\n".join(parts)


def _json(value: Any) -> str:
    return escape_surrogates(json.dumps(value, ensure_ascii=False))
