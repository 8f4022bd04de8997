"""A loop that lets a model call functions until it answers."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextvars import copy_context
from enum import StrEnum
from functools import partial
from typing import Any

import msgspec
from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.messages import Message
from enginehouse.core.sampler import Sampler
from enginehouse.core.sampling import SamplingParameters
from enginehouse.tools.calling import call_tools
from enginehouse.tools.checking import escape_surrogates
from enginehouse.tools.ladder import Ladder
from enginehouse.tools.results import CallOutcome, CheckedCall, ToolResult
from enginehouse.tools.specification import RESERVED, ToolLike, ToolSpec, tool_specs

_ANYTHING: TypeAdapter[Any] = TypeAdapter(Any)


class AgentLimits(msgspec.Struct, frozen=True, kw_only=True):
    """An agent's limits: turns of the model, calls in one turn, seconds for one tool call."""

    max_turns: int = 8
    max_calls: int = 8
    tool_timeout: float = 60.0

    def __post_init__(self) -> None:
        if self.max_turns < 1 or self.max_calls < 1 or self.tool_timeout <= 0:
            raise ConfigurationError("max_turns, max_calls and tool_timeout must be positive")


class AgentOutcome(StrEnum):
    """How a loop ended: with an answer, at the limit, or with an invalid turn."""

    ANSWERED = "answered"
    MAX_TURNS = "max_turns"
    MISSING = "missing"
    INVALID = "invalid"
    TRUNCATED = "truncated"


class AgentResult(msgspec.Struct, frozen=True, kw_only=True):
    """A loop's result. `messages` is the whole conversation, `turns` each turn's result.

    `text` is the last text that the model wrote; it is an answer only if `outcome` is `answered`.
    """

    outcome: AgentOutcome
    text: str
    messages: tuple[Message, ...]
    turns: tuple[ToolResult, ...]

    @property
    def prompt_tokens(self) -> int:
        """The tokens of all prompts."""
        return sum(turn.prompt_tokens for turn in self.turns)

    @property
    def completion_tokens(self) -> int:
        """The tokens of all answers."""
        return sum(turn.completion_tokens for turn in self.turns)


_PARAMETERS = SamplingParameters()
_LIMITS = AgentLimits()


async def run_agent(
    sampler: Sampler,
    messages: Sequence[Message],
    tools: Iterable[ToolLike],
    *,
    choice: str = "auto",
    parameters: SamplingParameters = _PARAMETERS,
    model: str | None = None,
    ladder: Ladder | None = None,
    limits: AgentLimits = _LIMITS,
) -> AgentResult:
    """Ask, run the calls and return their results to the model, until it answers with text.

    Every tool is a Python function, sync (run in a thread) or async; the calls of one turn run at
    the same time. The model gets a function's result as JSON (a text as it is), and an exception
    or a timeout as a message. A sync function that times out cannot be stopped: its daemon thread
    continues, without delaying the exit. `choice` applies to the first turn, later ones use
    "auto"; all calls of the conversation have different ids. Raises as call_tools does, and
    ConfigurationError for a tool without a function.
    """
    specs = tool_specs(tools)
    for spec in specs:
        if spec.function is None:
            raise ConfigurationError(
                f"the tool {spec.name} has no function to run",
                fix="pass typed Python functions, or use call_tools and run the calls yourself",
            )
    by_name = {spec.name: spec for spec in specs}
    ladder = ladder or Ladder()
    transcript = list(messages)
    turns: list[ToolResult] = []
    for turn in range(limits.max_turns):
        result = await call_tools(
            sampler,
            transcript,
            specs,
            choice=choice if turn == 0 or choice == RESERVED[-1] else "auto",
            parameters=parameters,
            model=model,
            max_calls=limits.max_calls,
            ladder=ladder,
        )
        turns.append(result)
        transcript.append(result.message())
        if result.outcome is not CallOutcome.CALLED:
            return _ended(AgentOutcome(result.outcome.value), transcript, turns)
        transcript += await asyncio.gather(
            *(_run(by_name[call.name], call, limits.tool_timeout) for call in result.calls)
        )
    return _ended(AgentOutcome.MAX_TURNS, transcript, turns)


def _ended(
    outcome: AgentOutcome, transcript: list[Message], turns: list[ToolResult]
) -> AgentResult:
    return AgentResult(
        outcome=outcome, text=turns[-1].text, messages=tuple(transcript), turns=tuple(turns)
    )


async def _run(spec: ToolSpec, call: CheckedCall, seconds: float) -> Message:
    clock = asyncio.timeout(seconds)
    try:
        async with clock:
            text = _written(await _returned(spec, call))
    except Exception as error:  # noqa: BLE001 - a tool may raise anything; the model gets the message
        text = f"error: {type(error).__name__}: {error}"
        if isinstance(error, TimeoutError) and clock.expired():
            text = f"error: {spec.name} took longer than {seconds:g} s and was cancelled"
    return Message("tool", escape_surrogates(text), tool_call_id=call.id)


def _written(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return _ANYTHING.dump_json(value).decode()
    except PydanticSerializationError:
        return str(value)


async def _returned(spec: ToolSpec, call: CheckedCall) -> Any:
    assert spec.function is not None
    run = partial(spec.function, **spec.typed(call.arguments))
    if _is_async(spec.function):
        return await run()
    value = await _in_thread(run, name=f"tool {spec.name}")
    return await value if inspect.isawaitable(value) else value


async def _in_thread(run: Callable[[], Any], *, name: str) -> Any:
    """The result of `run`, in a daemon thread: Python waits for the executor's threads at exit."""
    done: Future[tuple[Any, BaseException | None]] = Future()
    done.set_running_or_notify_cancel()

    def work() -> None:
        try:
            done.set_result((run(), None))
        except BaseException as error:  # noqa: BLE001 - raised below, where it is awaited
            done.set_result((None, error))

    threading.Thread(target=copy_context().run, args=(work,), name=name, daemon=True).start()
    value, error = await asyncio.wrap_future(done)
    if error is not None:
        raise error
    return value


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object whose call is a coroutine
    )
