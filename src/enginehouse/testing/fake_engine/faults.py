"""Which requests a fault hits: counted or matched, never by chance.

VLLM_FAKE_FAULTS is a JSON array of faults, or the path of a file with one. A fault is an object:

  fault    die, status, say, reset, close, truncate, hang or no_start: see the classes below
  path     regular expression on the whole path; the generation endpoints unless given
  match    regular expression that is searched for in the request's text (all messages, or prompt)
  reused   true: only requests on a connection that has carried one before

Requests that pass these filters are counted from 1. The fault hits the first `first` of them, every
`every`-th, and the numbers in `nth`; all of them if none of these is given. Counts start again with
the process unless VLLM_FAKE_STATE names a file that keeps them across restarts. If several faults
hit a request, the first in the list wins. A dead engine counts nothing.
The one-token requests that Enginehouse checks a server with count, too; their prompt is "1".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from enginehouse.testing.fake_engine import tokenizer
from enginehouse.testing.fake_engine.requests import ChatMessage

# What a seed and a chunked prefill do to vLLM 0.32 on a CPU.
SEEDED = "RuntimeError: CPU Generator does not use offset"
GENERATION = re.compile(r"/v1/(chat/)?completions")
Reply = Literal["500", "reset", "hang"]


class Fault(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="fault",
    tag=lambda name: re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower(),
):
    """What every fault has: which requests it hits."""

    path: str = GENERATION.pattern
    match: str | None = None
    reused: bool = False
    first: int = 0
    every: int = 0
    nth: tuple[int, ...] = ()

    def covers(self, asked: Asked) -> bool:
        """Whether the request counts."""
        return (
            re.fullmatch(self.path, asked.path) is not None
            and (asked.reused or not self.reused)
            and (self.match is None or re.search(self.match, asked.text, re.DOTALL) is not None)
        )

    def hits(self, number: int) -> bool:
        """Whether it hits the `number`-th request that counts."""
        if not (self.first or self.every or self.nth):
            return True
        of_every = self.every > 0 and number % self.every == 0
        return number <= self.first or of_every or number in self.nth


class Die(Fault, frozen=True):
    """The engine dies `delay` seconds after the request came, with all requests in flight.

    Without `signal` it dies as vLLM does: a traceback of EngineCore's that ends in `cause`, then
    EngineDeadError; requests in flight and new ones get `reply`, and after `linger` seconds the
    process ends with `exit_code`, or, as with VLLM_KEEP_ALIVE_ON_ENGINE_DEATH, lives on where
    `lives` is true. Meanwhile /health answers `health`: 200 is a lie. With `signal` the whole
    process is killed at once and logs nothing.
    """

    delay: float = 0.0
    cause: str = SEEDED
    reply: Reply = "500"
    linger: float = 0.2
    exit_code: int = 0
    lives: bool = False
    health: int = 503
    signal: int | None = None


class Status(Fault, frozen=True):
    """An error reply of the server, or of a proxy before it."""

    status: int
    retry_after: str | None = None
    message: str = "the fake engine was told to refuse this request"


class Say(Fault, frozen=True):
    """Status 200 with `body` as the reply; nothing is generated."""

    body: str


class Reset(Fault, frozen=True):
    """The connection is reset (RST): before the first byte, or in the middle of the body."""

    at: Literal["start", "body"] = "start"


class Close(Fault, frozen=True):
    """The connection is closed without a byte; with `reused` it is the keep-alive race."""


class Truncate(Fault, frozen=True):
    """Half of the body, as if that were all: status 200, the length right, the JSON broken off."""


class Hang(Fault, frozen=True):
    """Nothing comes for so many `seconds`, for ever without; then the right answer."""

    seconds: float | None = None


class NoStart(Fault, frozen=True):
    """The start fails as with VLLM_FAKE_START_ERROR; counted are the starts of the process."""

    cause: str


AnyFault = Die | Status | Say | Reset | Close | Truncate | Hang | NoStart
F = TypeVar("F", bound=Fault)


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What of a request decides; `reused`: its connection has carried another before."""

    path: str
    text: str
    reused: bool


class Faults:
    """The faults of one process, and how many requests each has counted."""

    def __init__(self, faults: Sequence[AnyFault], *, state: Path | None = None) -> None:
        self._faults = tuple(faults)
        self._state = state
        self._counts = [0] * len(self._faults)
        if state is not None and state.exists():
            self._counts = msgspec.json.decode(state.read_bytes(), type=list[int])

    def __bool__(self) -> bool:
        return bool(self._faults)

    @classmethod
    def parse(cls, given: str | None, *, state: str | None) -> Faults:
        """Read the variables' values; raises msgspec's ValueError for anything else."""
        if given is not None and not given.lstrip().startswith("["):
            given = Path(given).read_text(encoding="utf-8")
        faults = msgspec.json.decode(given or "[]", type=list[AnyFault])
        return cls(faults, state=Path(state) if state else None)

    def of_start(self) -> NoStart | None:
        """Count a start; the fault that hits it."""
        found = self._count([place for place, f in enumerate(self._faults) if _is_of_start(f)])
        return found if isinstance(found, NoStart) else None

    def of(self, asked: Asked) -> AnyFault | None:
        """Count a request; the fault that hits it."""
        return self._count(
            [
                place
                for place, fault in enumerate(self._faults)
                if not _is_of_start(fault) and fault.covers(asked)
            ]
        )

    def _count(self, places: Sequence[int]) -> AnyFault | None:
        if not places:
            return None
        for place in places:
            self._counts[place] += 1
        if self._state is not None:
            # now, because the process may be dead later
            written = self._state.with_suffix(".new")
            written.write_bytes(msgspec.json.encode(self._counts))
            written.replace(self._state)
        return next(
            (self._faults[p] for p in places if self._faults[p].hits(self._counts[p])), None
        )


class _Text(msgspec.Struct):
    messages: list[ChatMessage] = []
    prompt: str | list[int] = ""


def text_of(body: bytes) -> str:
    """The text that a request's body asks about; "" if it holds none."""
    try:
        asked = msgspec.json.decode(body, type=_Text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    prompt = asked.prompt if isinstance(asked.prompt, str) else tokenizer.decode(asked.prompt)
    return "\n".join([*(message.text for message in asked.messages), prompt])


def _is_of_start(fault: AnyFault) -> bool:
    return isinstance(fault, NoStart)
