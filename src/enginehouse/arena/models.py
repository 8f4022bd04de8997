"""Who answers for an experiment's models, and how much fits into their prompts."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from enginehouse.arena.prompts import Prompt
from enginehouse.arena.records import ModelSpec
from enginehouse.arena.slots import Slots
from enginehouse.core.sampler import Capability, Load, Provenance, Sampler, SampleResponse

_FIRST_GUESS = 0.3  # tokens per character, until the server has counted a prompt
_MARGIN = 1.05


@dataclass(frozen=True, kw_only=True)
class Model:
    """Who answers for a ModelSpec.

    `send_as` is the model name of every request; None is the sampler's own. `slots` requests fill
    the engine (see `slots_for`); None follows the server's queue, as `load` reports it. Models with
    the same `provenance.base_url` share their slots. `context` is the most tokens of a prompt and
    its answer together; None if it is not known: then it is learned when the server refuses a
    prompt. `load` reads the server's queue and the counters of its prefix cache.
    """

    sampler: Sampler
    provenance: Provenance
    send_as: str | None = None
    slots: int | None = None
    context: int | None = None
    load: Callable[[], Awaitable[Load | None]] | None = None


def slots_for(places: int) -> int:
    """The requests to have in flight for an engine that works on `places` at a time.

    Twice as many: answers of a few tokens, such as wishes to speak, end faster than the next
    requests pass the server's front. In simulations, the calls that wait there instead of here
    cost nothing.
    """
    return 2 * places


class ContextLimit:
    """What fits into a model's context, by an estimate learned from the server's own counts.

    The tokens of a prompt are estimated from its characters, by the ratio of the longest prompt
    that the server has counted, plus a margin of 5 %.
    """

    def __init__(self, context: int | None) -> None:
        self._context = context
        self._ratio = _FIRST_GUESS
        self._longest = 0

    def learn(self, prompt: Prompt, response: SampleResponse, *, dropped: int) -> None:
        """Take the server's count of a prompt into account."""
        size = _size(prompt, dropped)
        if size >= self._longest and response.prompt_tokens:
            self._longest = size
            self._ratio = response.prompt_tokens / size

    def refuse(self, prompt: Prompt, *, dropped: int, max_tokens: int) -> None:
        """Take into account that the server refused a prompt as too long."""
        size = _size(prompt, dropped)
        if self._context is None:
            self._context = math.floor(size * self._ratio * _MARGIN) + max_tokens - 1
        elif self._context > max_tokens:
            self._longest = size
            self._ratio = max(self._ratio, (self._context - max_tokens + 1) / size)

    def fitting(self, prompt: Prompt, *, dropped: int, max_tokens: int) -> int:
        """How many of the prompt's oldest texts to leave out, at least `dropped`.

        While it does not fit, a quarter of the texts that are left is left out at once, so that the
        beginning of the prompts changes rarely.
        """
        if self._context is None:
            return dropped
        room = self._context - max_tokens
        while dropped < prompt.droppable and _size(prompt, dropped) * self._ratio * _MARGIN > room:
            dropped += math.ceil((prompt.droppable - dropped) / 4)
        return dropped


def _size(prompt: Prompt, dropped: int) -> int:
    return sum(len(message.content) for message in prompt.chat(dropped).messages)


@dataclass(kw_only=True)
class ActiveModel:
    """A model in one session; `model` None: only recorded calls can answer for it.

    `session` is the id of its ProvenanceRecord; `has_answered` becomes true with the first answer.
    """

    spec: ModelSpec
    model: Model | None
    session: int
    slots: Slots
    limit: ContextLimit
    has_answered: bool = False
    refused: set[Capability] = field(default_factory=set)
    """What the engine turned out not to support."""

    @property
    def supports(self) -> frozenset[Capability]:
        """What the engine supports, as far as we know."""
        if self.model is None:
            return frozenset(Capability) - self.refused
        return self.model.sampler.capabilities.supports - self.refused
