"""The ladder: what comes of every step, and when the next is tried."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.support.scripted_sampler import Scripted, cut_off, native, step_of

from enginehouse.core.errors import (
    ConfigurationError,
    ConnectionFailedError,
    RateLimitedError,
    ServerFaultError,
    UnauthorizedError,
    UnknownNameError,
    UnsupportedError,
)
from enginehouse.core.messages import ChatPrompt, Message
from enginehouse.core.sampler import Completion, SampleRequest
from enginehouse.core.sampling import SamplingParameters, StructuredOutput
from enginehouse.tools import CallOutcome, Ladder, Step, call_tools

NATIVE, CONSTRAINED, PROMPTED = Step


def move(x: int, y: int = 0) -> None:
    """Move there."""


def say(text: str) -> None:
    """Say it."""


ASKED = [Message("user", "Go to 3.")]
CALL = '{"name": "move", "arguments": {"x": 3}}'
LIST = f'{{"calls": [{CALL}]}}'


async def _ask(sampler: Scripted, **options: Any):
    return await call_tools(sampler, ASKED, [move, say], **options)


def _system(request: SampleRequest) -> str:
    assert isinstance(request.prompt, ChatPrompt)
    return request.prompt.messages[0].content


async def test_native_calls_come_first_and_keep_their_ids():
    """Parallel ones too; what was written beside them is kept, and nothing more is asked."""
    sampler = Scripted(native("move", '{"x": 3}', ("say", '{"text": "hi"}'), text="Going."))
    result = await _ask(sampler)
    assert (result.outcome, result.step, result.text) == (CallOutcome.CALLED, NATIVE, "Going.")
    assert [(c.id, c.name, c.arguments) for c in result.calls] == [
        ("id_0", "move", {"x": 3}),
        ("id_1", "say", {"text": "hi"}),
    ]
    assert sampler.steps == [NATIVE]
    assert [tool.name for tool in sampler.requests[0].tools] == ["move", "say"]
    assert (result.prompt_tokens, result.completion_tokens, result.why) == (10, 5, None)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (native("move", '{"x": "far"}'), "is not of type 'integer'"),
        (native("move", '{"x": 3, "z": 1}'), "z"),
        (native("move", '{"x": 3'), "not JSON"),
        (native("move", "[3]"), "not an object"),
        (native("mvoe", '{"x": 3}'), "did you mean move?"),
        (native("move", '{"x": 1e999}'), "not finite"),
        (native("move", '{"x": 3, "y": "\\ud83d"}'), "half a character"),
        (native("move", '{"x": 3, "y": ' + "[" * 600 + "]" * 600 + "}"), "levels"),
        (native("move", '{"x": 3}', *[("move", '{"x": 3}')] * 8), "9 calls"),
        (Completion(text="I would go.", finish_reason="stop"), "no call"),
        (Completion(text="", finish_reason="stop"), "empty"),
        (cut_off("I would go to the"), "max_tokens"),
        (native("move", '{"x": 3}', finish_reason="length"), "max_tokens"),
    ],
)
async def test_a_missing_invalid_or_cut_off_call_leads_to_the_next_step(answer, why):
    """Why the first was left is in the attempts; the call that comes back is the second's."""
    sampler = Scripted(answer, LIST)
    result = await _ask(sampler, choice="required")
    assert (result.outcome, result.step) == (CallOutcome.CALLED, CONSTRAINED)
    assert result.calls[0].arguments == {"x": 3}
    assert sampler.steps == [NATIVE, CONSTRAINED]
    assert why in (result.attempts[0].why or "")
    assert result.completion_tokens == 10


@pytest.mark.parametrize(
    "error",
    [
        ConnectionFailedError("refused"),
        UnauthorizedError("401", status=401),
        RateLimitedError("429", status=429),
        ServerFaultError("500", status=500),
    ],
)
async def test_a_lost_connection_is_no_missing_call(error):
    """It is raised, at whatever step, and nothing else is asked."""
    first = Scripted(error)
    with pytest.raises(type(error)):
        await _ask(first)
    assert first.steps == [NATIVE]
    second = Scripted("I would.", error)
    with pytest.raises(type(error)):
        await _ask(second, choice="required")
    assert second.steps == [NATIVE, CONSTRAINED]


async def test_markup_that_a_server_left_in_the_text_is_named():
    """The parser is at fault, not the model; the next step is tried even where words would do."""
    sampler = Scripted(f"<tool_call>{CALL}</tool_call>", LIST)
    result = await _ask(sampler)
    assert result.step is CONSTRAINED
    assert result.attempts[0].outcome is CallOutcome.MISSING
    assert "wrong tool parser" in (result.attempts[0].why or "")


async def test_what_the_engine_refuses_is_left_and_what_all_refuse_is_raised():
    """An attempt without a response says so."""
    refusal = UnsupportedError("needs --tool-call-parser", status=400)
    sampler = Scripted(refusal, LIST)
    result = await _ask(sampler)
    assert result.step is CONSTRAINED
    assert (result.attempts[0].response, result.attempts[0].outcome) == (None, None)
    assert "--tool-call-parser" in (result.attempts[0].why or "")
    with pytest.raises(UnsupportedError):
        await _ask(Scripted(refusal))


async def test_a_constrained_answer_that_was_cut_off_is_asked_once_more_with_a_penalty():
    """The only change is the frequency penalty; cut off again, it is truncated, never valid."""
    ladder = Ladder([CONSTRAINED])
    looping = Scripted(cut_off('{"calls": [{"name": "move", "arguments": {"x": 33333'), LIST)
    result = await _ask(looping, choice="required", ladder=ladder)
    assert result.outcome is CallOutcome.CALLED
    first, second = (request.parameters for request in looping.requests)
    assert (first.frequency_penalty, second.frequency_penalty) == (0.0, 0.5)
    assert [a.outcome for a in result.attempts] == [CallOutcome.TRUNCATED, CallOutcome.CALLED]
    hopeless = await _ask(Scripted(cut_off(LIST)), choice="required", ladder=ladder)
    assert (hopeless.outcome, hopeless.calls) == (CallOutcome.TRUNCATED, ())
    assert len(hopeless.attempts) == 2


async def test_a_call_behind_which_the_answer_was_cut_off_is_truncated():
    """VLLM says "tool_calls" then; only the number of tokens shows it."""
    sampler = Scripted(native("move", '{"x": 3}'))
    result = await _ask(
        sampler, ladder=Ladder([NATIVE]), parameters=SamplingParameters(max_tokens=5)
    )
    assert (result.outcome, result.calls) == (CallOutcome.TRUNCATED, ())


async def test_a_prompted_call_is_repaired_once_by_its_error():
    """The second turn quotes what was wrong and what the model had written."""
    wrong = '<tool_call>{"name": "move", "arguments": {"x": "far"}}</tool_call>'
    sampler = Scripted(wrong, f"<tool_call>{CALL}</tool_call>")
    result = await _ask(sampler, choice="required", ladder=Ladder([PROMPTED]))
    assert (result.outcome, result.step) == (CallOutcome.CALLED, PROMPTED)
    repaired = sampler.requests[1].prompt.messages
    assert repaired[-2] == Message("assistant", wrong)
    assert "is not of type 'integer'" in repaired[-1].content
    still = Scripted(wrong)
    result = await _ask(still, choice="required", ladder=Ladder([PROMPTED]))
    assert (result.outcome, len(still.requests)) == (CallOutcome.INVALID, 2)
    assert "'integer'" in (result.why or "")


async def test_no_call_where_one_was_required_is_missing_at_the_end():
    """Whatever was tried: words are never passed off as a call."""
    sampler = Scripted("I would go.")
    result = await _ask(sampler, choice="required", ladder=Ladder([NATIVE, PROMPTED]))
    assert (result.outcome, result.calls) == (CallOutcome.MISSING, ())
    assert sampler.steps == [NATIVE, PROMPTED, PROMPTED]


async def test_no_lack_of_a_call_hides_one_that_was_cut_off():
    """Truncated stays truncated where the steps behind it give no call at all."""
    sampler = Scripted(cut_off('{"calls": ['), cut_off('{"calls": ['), "I would go.")
    ladder = Ladder([CONSTRAINED, PROMPTED])
    result = await _ask(sampler, choice="required", ladder=ladder)
    assert (result.outcome, result.step) == (CallOutcome.TRUNCATED, CONSTRAINED)
    assert "max_tokens" in (result.why or "")
    assert sampler.steps == [CONSTRAINED, CONSTRAINED, PROMPTED, PROMPTED]


@pytest.mark.parametrize(
    ("step", "answer"),
    [
        (NATIVE, "It is noon."),
        (CONSTRAINED, '{"name": "none", "answer": "It is noon."}'),
        (PROMPTED, "It is noon."),
    ],
)
async def test_words_are_an_answer_where_calls_are_optional(step, answer):
    """At every step; the text is what the model said, without its wrapping."""
    result = await _ask(Scripted(answer), ladder=Ladder([step]))
    assert (result.outcome, result.text, result.calls) == (CallOutcome.ANSWERED, "It is noon.", ())


@pytest.mark.parametrize("step", list(Step))
async def test_the_choice_none_lets_no_call_through(step):
    """The tools are not described, and a call that comes all the same is invalid."""
    sampler = Scripted("Noon.")
    result = await _ask(sampler, choice="none", ladder=Ladder([step]))
    assert (result.outcome, result.text) == (CallOutcome.ANSWERED, "Noon.")
    (request,) = sampler.requests
    assert request.parameters.structured is None
    if step is NATIVE:
        assert request.tool_choice == "none"
        called = Scripted(native("move", '{"x": 3}'))
        result = await _ask(called, choice="none", ladder=Ladder([NATIVE]))
        assert result.outcome is CallOutcome.INVALID


async def test_a_named_tool_is_the_only_one_that_counts():
    """Native requests name it, the other steps tell of no other, and no other's call is valid."""
    other = native("say", '{"text": "hi"}')
    sampler = Scripted(other, '{"name": "say", "arguments": {"text": "hi"}}', f"{CALL}")
    result = await _ask(sampler, choice="move", max_calls=1)
    assert result.step is PROMPTED
    assert sampler.requests[0].tool_choice == "move"
    schema = sampler.requests[1].parameters.structured.json_schema
    assert schema["properties"]["name"] == {"const": "move"}
    assert '"say"' not in _system(sampler.requests[1])


async def test_constrained_and_prompted_steps_tell_of_the_tools_in_the_system_message():
    """The user's own system message stays in front; the conversation is otherwise untouched."""
    messages = [Message("system", "Be brief."), *ASKED]
    sampler = Scripted(UnsupportedError("no"), UnsupportedError("no"), CALL)
    await call_tools(sampler, messages, [move], choice="required")
    for request in sampler.requests[1:]:
        system = _system(request)
        assert system.startswith("Be brief.\n\n")
        assert "Move there." in system
        assert request.prompt.messages[1:] == tuple(ASKED)


async def test_calls_and_results_become_text_for_models_without_such_roles():
    """Two results of one turn are one user's turn, as templates demand alternation."""
    before = await _ask(Scripted(native("move", '{"x": 3}', ("move", '{"x": 4}'))))
    messages = [
        *ASKED,
        before.message(),
        Message("tool", "blocked", tool_call_id="id_0"),
        Message("tool", "arrived", tool_call_id="id_1"),
    ]
    sampler = Scripted(LIST)
    await call_tools(sampler, messages, [move], ladder=Ladder([CONSTRAINED]))
    turns = sampler.requests[0].prompt.messages
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "user"]
    assert '"arguments": {"x":3}' in turns[2].content
    assert turns[3].content == "Result of move: blocked\nResult of move: arrived"


async def test_what_works_is_remembered_per_model():
    """A step that failed three times is left out once a later one worked; others start anew."""
    sampler = Scripted(lambda request: LIST if step_of(request) is CONSTRAINED else "I would.")
    ladder = Ladder()
    for _ in range(4):
        result = await _ask(sampler, choice="required", ladder=ladder, model="small")
        assert result.step is CONSTRAINED
    assert sampler.steps == [NATIVE, CONSTRAINED] * 3 + [CONSTRAINED]
    await _ask(sampler, choice="required", ladder=ladder, model="other")
    assert sampler.steps[-2:] == [NATIVE, CONSTRAINED]


async def test_what_works_is_remembered_per_chat_template():
    """A model's calls depend on it; the memory is one, and a template comes back to its own."""
    ladder = Ladder([NATIVE, CONSTRAINED], template="a")
    ladder.note("small", CONSTRAINED, CallOutcome.CALLED)
    for _ in range(3):
        ladder.note("small", NATIVE, CallOutcome.MISSING)
    assert ladder.order("small") == (CONSTRAINED,)
    other = ladder.with_template("b")
    assert other.order("small") == (NATIVE, CONSTRAINED)
    assert other.with_template("a").order("small") == (CONSTRAINED,)


async def test_a_step_that_ever_worked_is_not_given_up():
    """Nor is one when nothing else works: a model that fails is asked as at first."""
    ladder = Ladder([NATIVE, CONSTRAINED])
    ladder.note(None, NATIVE, CallOutcome.CALLED)
    ladder.note(None, CONSTRAINED, CallOutcome.CALLED)
    for _ in range(10):
        ladder.note(None, NATIVE, CallOutcome.INVALID)
    assert ladder.order(None) == (NATIVE, CONSTRAINED)
    hopeless = Ladder()
    for step in [*Step] * 5:
        hopeless.note(None, step, CallOutcome.MISSING)
    assert hopeless.order(None) == tuple(Step)


@pytest.mark.parametrize(
    ("tools", "options", "error"),
    [
        ([], {}, ConfigurationError),
        ([move, move], {}, ConfigurationError),
        ([move], {"choice": "say"}, UnknownNameError),
        ([move], {"max_calls": 0}, ConfigurationError),
        ([move], {"parameters": SamplingParameters(n=2)}, ConfigurationError),
        (
            [move],
            {"parameters": SamplingParameters(structured=StructuredOutput(regex="a"))},
            ConfigurationError,
        ),
    ],
)
async def test_questions_that_make_no_sense_are_refused_before_anything_is_asked(
    tools, options, error
):
    """Each error says what to change."""
    sampler = Scripted(CALL)
    with pytest.raises(error):
        await call_tools(sampler, ASKED, tools, **options)
    assert sampler.requests == []


def test_a_ladder_of_unknown_or_repeated_steps_is_refused():
    """The known ones are listed."""
    with pytest.raises(UnknownNameError, match="natve"):
        Ladder(["natve"])
    for steps in ([], [NATIVE, NATIVE]):
        with pytest.raises(ConfigurationError):
            Ladder(steps)


async def test_requests_hold_nothing_that_a_journal_cannot():
    """Specs of functions become plain definitions."""
    import msgspec

    sampler = Scripted(native("move", '{"x": 3}'))
    result = await _ask(sampler)
    assert json.loads(msgspec.json.encode(result))["outcome"] == "called"


async def test_an_id_that_was_in_the_conversation_before_is_made_anew():
    """Servers and our own steps number calls from 0 in every turn; a result names but one call."""
    sampler = Scripted(f'{{"calls": [{CALL}, {CALL}]}}')
    messages = list(ASKED)
    for expected in (["call_0", "call_1"], ["call_2", "call_3"]):
        result = await call_tools(sampler, messages, [move], ladder=Ladder([CONSTRAINED]))
        assert [call.id for call in result.calls] == expected
        messages.append(result.message())
    engine = Scripted(native("move", '{"x": 3}', ("move", '{"x": 3}')))
    for expected in (["id_0", "id_1"], ["call_6", "call_7"]):
        result = await call_tools(engine, messages, [move])
        assert [call.id for call in result.calls] == expected
        messages.append(result.message())


@pytest.mark.parametrize(
    "text",
    ["You should not call move(x=3).", f"<think>I may <tool_call>{CALL}</tool_call></think>Noon."],
)
async def test_a_prompted_answer_that_mentions_a_call_is_words_where_they_will_do(text):
    """Where a call is required, a mention is one."""
    ladder = Ladder([PROMPTED])
    result = await _ask(Scripted(text), ladder=ladder)
    assert (result.outcome, result.text) == (CallOutcome.ANSWERED, text)


async def test_thoughts_that_do_not_end_are_neither_call_nor_answer():
    """The model is asked once more."""
    thought = f"<think>maybe <tool_call>{CALL}</tool_call> no"
    ladder = Ladder([PROMPTED])
    result = await _ask(Scripted(thought, "It is noon."), ladder=ladder)
    assert (result.outcome, result.text) == (CallOutcome.ANSWERED, "It is noon.")
    assert (await _ask(Scripted(thought), ladder=ladder)).outcome is CallOutcome.MISSING
    required = await _ask(Scripted(thought), choice="required", ladder=ladder)
    assert required.outcome is CallOutcome.CALLED


async def test_brackets_without_end_are_a_missing_call():
    """Nothing that a model writes is an exception."""
    sampler = Scripted("[" * 900 + "]" * 900)
    result = await _ask(sampler, choice="required", ladder=Ladder([CONSTRAINED, PROMPTED]))
    assert result.outcome is CallOutcome.MISSING
