"""The loop that runs calls."""

from __future__ import annotations

import asyncio
import threading
import time
from contextvars import ContextVar

import pytest
from pydantic import BaseModel
from tests.support.scripted_sampler import Scripted, cut_off, native

from enginehouse.core.errors import ConfigurationError, ConnectionFailedError
from enginehouse.core.messages import Message
from enginehouse.tools import AgentLimits, AgentOutcome, Ladder, run_agent

ASKED = [Message("user", "Add 2 and 3.")]
NATIVE = Ladder(["native"])


class Numbers(BaseModel):
    """Two numbers."""

    a: int
    b: int


def add(numbers: Numbers) -> dict[str, int]:
    """Add them."""
    return {"sum": numbers.a + numbers.b}


async def fail() -> None:
    """Fail."""
    raise LookupError("no such thing")


ADD = native("add", '{"numbers": {"a": 2, "b": 3}}')


async def test_results_go_back_until_the_model_answers():
    """Functions get their own types and return JSON; the transcript is whole."""
    sampler = Scripted(ADD, "It is 5.")
    result = await run_agent(sampler, ASKED, [add], choice="required")
    assert (result.outcome, result.text) == (AgentOutcome.ANSWERED, "It is 5.")
    assert [m.role for m in result.messages] == ["user", "assistant", "tool", "assistant"]
    assert result.messages[2] == Message("tool", '{"sum":5}', tool_call_id="id_0")
    assert [request.tool_choice for request in sampler.requests] == ["required", "auto"]
    assert sampler.requests[1].prompt.messages == result.messages[:3]
    assert (result.prompt_tokens, result.completion_tokens) == (20, 10)


async def test_the_loop_ends_at_its_bound():
    """With the calls run, their results in the transcript, and the bound as the outcome."""
    result = await run_agent(Scripted(ADD), ASKED, [add], limits=AgentLimits(max_turns=3))
    assert result.outcome is AgentOutcome.MAX_TURNS
    assert len(result.turns) == 3
    assert result.messages[-1].role == "tool"


async def test_an_exception_goes_back_in_words():
    """The model may do something about it."""
    sampler = Scripted(native("fail", "{}"), "Sorry.")
    result = await run_agent(sampler, ASKED, [fail])
    assert result.messages[2].content == "error: LookupError: no such thing"
    assert result.outcome is AgentOutcome.ANSWERED


async def test_the_calls_of_a_turn_run_at_the_same_time():
    """Sync ones in threads, async ones in the loop; each waits here for the other."""
    met = threading.Barrier(2, timeout=10)
    both = [asyncio.Event(), asyncio.Event()]

    def slow(place: int) -> str:
        """Meet the other."""
        met.wait()
        return f"slow {place}"

    async def quick(place: int) -> str:
        """Meet the other."""
        both[place].set()
        await asyncio.wait_for(both[1 - place].wait(), 10)
        return f"quick {place}"

    for function in (slow, quick):
        name = function.__name__
        sampler = Scripted(native(name, '{"place": 0}', (name, '{"place": 1}')), "Done.")
        result = await run_agent(sampler, ASKED, [function])
        assert [m.content for m in result.messages[2:4]] == [f"{name} 0", f"{name} 1"]


async def test_a_tool_that_takes_too_long_is_given_up():
    """Its result says so, and the loop goes on."""

    async def wait() -> None:
        """Wait for ever."""
        await asyncio.Event().wait()

    sampler = Scripted(native("wait", "{}"), "Well.")
    limits = AgentLimits(tool_timeout=0.01)
    result = await run_agent(sampler, ASKED, [wait], limits=limits)
    assert "longer than 0.01 s" in result.messages[2].content
    assert result.text == "Well."


async def test_what_is_no_call_ends_the_loop_under_its_own_name():
    """A turn that was cut off is not passed off as an answer."""
    result = await run_agent(Scripted(cut_off("It is")), ASKED, [add], ladder=NATIVE)
    assert (result.outcome, result.text) == (AgentOutcome.TRUNCATED, "It is")


async def test_a_tools_own_time_out_is_an_exception_like_any_other():
    """It is not passed off as the loop's bound."""

    async def ask() -> None:
        """Ask the weather service."""
        raise TimeoutError("the service said 504")

    result = await run_agent(Scripted(native("ask", "{}"), "Well."), ASKED, [ask])
    assert result.messages[2].content == "error: TimeoutError: the service said 504"


def test_a_function_that_never_returns_holds_up_no_exit():
    """It is given up, and neither the loop's end nor the process waits for its thread."""
    released = threading.Event()

    def hang() -> None:
        """Wait for ever."""
        released.wait(60)

    limits = AgentLimits(tool_timeout=0.01)
    sampler = Scripted(native("hang", "{}"), "Well.")
    begun = time.monotonic()
    result = asyncio.run(run_agent(sampler, ASKED, [hang], limits=limits))
    assert time.monotonic() - begun < 30
    assert "longer than 0.01 s" in result.messages[2].content
    left = [thread for thread in threading.enumerate() if thread.name.startswith("tool hang")]
    assert [thread.daemon for thread in left] == [True]
    released.set()
    left[0].join()


async def test_functions_see_the_context_of_their_caller():
    """Context variables reach the thread."""
    place = ContextVar("place", default="nowhere")
    place.set("here")

    def look() -> str:
        """Say where."""
        return place.get()

    result = await run_agent(Scripted(native("look", "{}"), "Well."), ASKED, [look])
    assert result.messages[2].content == "here"


async def test_a_function_that_runs_out_of_an_iterator_is_told_so():
    """StopIteration passes through no coroutine; the model hears of it all the same."""

    def find() -> str:
        """Find it."""
        return next(name for name in ())

    result = await run_agent(Scripted(native("find", "{}"), "Well."), ASKED, [find])
    assert "StopIteration" in result.messages[2].content


@pytest.mark.parametrize("value", ["bad\udcff name", ["bad\udcff name"], OSError("bad\udcff name")])
async def test_half_a_character_comes_back_as_its_escape(value):
    """In a text, within a value, in an error: the conversation can be sent and kept."""

    def listing() -> object:
        """List files."""
        if isinstance(value, Exception):
            raise value
        return value

    result = await run_agent(Scripted(native("listing", "{}"), "Well."), ASKED, [listing])
    assert "bad\\udcff name" in result.messages[2].content
    assert result.messages[2].content.encode()


async def test_parameters_of_any_name_reach_the_function():
    """Also those that pydantic keeps for itself."""

    def take(_x: int, model_config: str) -> str:
        """Take them."""
        return f"{_x} {model_config}"

    call = native("take", '{"_x": 1, "model_config": "c"}')
    result = await run_agent(Scripted(call, "Well."), ASKED, [take])
    assert result.messages[2].content == "1 c"


async def test_no_two_calls_of_a_conversation_have_one_id():
    """Whatever the engine calls them: every result names its call."""
    result = await run_agent(Scripted(ADD), ASKED, [add], limits=AgentLimits(max_turns=3))
    ids = [call.id for message in result.messages for call in message.tool_calls]
    assert ids == ["id_0", "call_1", "call_2"]
    assert [m.tool_call_id for m in result.messages if m.role == "tool"] == ids


async def test_values_that_json_has_not_come_back_as_text():
    """Nothing that a function returns breaks the loop."""

    def odd() -> object:
        """Give something odd."""
        return object

    sampler = Scripted(native("odd", "{}"), "Well.")
    result = await run_agent(sampler, ASKED, [odd])
    assert result.messages[2].content


async def test_only_functions_can_be_run_and_errors_of_the_wire_are_raised():
    """A tool without a function is refused before anything is asked."""
    sampler = Scripted(ADD)
    with pytest.raises(ConfigurationError, match="function"):
        await run_agent(sampler, ASKED, [{"name": "add", "parameters": {"type": "object"}}])
    assert sampler.requests == []
    with pytest.raises(ConnectionFailedError):
        await run_agent(Scripted(ConnectionFailedError("gone")), ASKED, [add])
    with pytest.raises(ConfigurationError):
        AgentLimits(max_turns=0)
