"""Asks for tool calls, step by step, until there is a valid one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from enginehouse.core.errors import (
    ConfigurationError,
    MalformedResponseError,
    UnknownNameError,
    UnsupportedError,
)
from enginehouse.core.messages import ChatPrompt, Message
from enginehouse.core.reasoning import strip_reasoning
from enginehouse.core.sampler import Completion, Sampler, SampleRequest, SampleResponse
from enginehouse.core.sampling import SamplingParameters, StructuredOutput
from enginehouse.core.tool_steps import Step
from enginehouse.tools.checking import FoundCall, check_calls
from enginehouse.tools.constraint import answer_schema, read_answer
from enginehouse.tools.ladder import Ladder
from enginehouse.tools.markup import leftover_markup
from enginehouse.tools.parsing import find_calls
from enginehouse.tools.prompting import (
    constrained_instructions,
    flattened,
    prompted_instructions,
    repair,
    with_system,
)
from enginehouse.tools.results import DONE, Attempt, CallOutcome, CheckedCall, ToolResult
from enginehouse.tools.specification import RESERVED, ToolLike, ToolSpec, tool_specs

# A small model repeats a string, a number or a list item until max_tokens cuts it off. Asked once
# more with this penalty, SmolLM2-135M got out of every loop seen, and nothing else is changed.
LOOP_PENALTY: Final = 0.5
_DEFAULTS = SamplingParameters()


async def call_tools(
    sampler: Sampler,
    messages: Sequence[Message],
    tools: Iterable[ToolLike],
    *,
    choice: str = "auto",
    parameters: SamplingParameters = _DEFAULTS,
    model: str | None = None,
    max_calls: int = 8,
    ladder: Ladder | None = None,
) -> ToolResult:
    """Ask for calls of `tools`; every call that comes back is valid against its tool's schema.

    `choice` is "auto" (calls or words), "required" (a call), "none" (words) or the name of the one
    tool to call. The steps of `ladder` are tried in turn, each only after the one before gave no
    call, no valid one, one that was cut off, or is not to be had of this engine: native calls;
    decoding constrained to a JSON schema, asked once more with a frequency penalty where
    max_tokens cut it off; prompted text, with one repair turn that quotes the error. Without a
    ladder all are tried and nothing is remembered. A call has the id that the engine gave it, or a
    new one if that is missing or is in `messages` already.

    Raises WireError (a lost connection, a refused key, a rate limit never lead to the next step),
    UnsupportedError if the engine does none of the steps, and ConfigurationError for tools, choice
    or parameters that make no sense.
    """
    question = _Question(
        sampler=sampler,
        messages=tuple(messages),
        tools=tool_specs(tools),
        choice=choice,
        parameters=parameters,
        model=model,
        max_calls=max_calls,
    )
    question.check()
    answer = await _climb(ladder or Ladder(), question)
    return ToolResult(
        outcome=answer.outcome,
        step=answer.step,
        calls=answer.calls,
        text=answer.text,
        attempts=tuple(question.attempts),
    )


async def _climb(ladder: Ladder, question: _Question) -> _Answer:
    """What the first step that does gives, or else what is to be told of all; each is noted."""
    answer: _Answer | None = None
    for step in ladder.order(question.model):
        given = await _STEPS[step](question)
        ladder.note(question.model, step, given.outcome if given else None)
        answer = _telling(answer, given)
        if given and given.outcome in DONE:
            break
    if answer is None:
        assert question.refused is not None
        raise question.refused
    return answer


@dataclass(frozen=True)
class _Answer:
    """What one answer holds; `why` says what is wrong with it."""

    step: Step
    outcome: CallOutcome
    text: str = ""
    calls: tuple[CheckedCall, ...] = ()
    why: str | None = None


@dataclass
class _Question:
    """What is asked, in whatever way, and what has come of it so far."""

    sampler: Sampler
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    choice: str
    parameters: SamplingParameters
    model: str | None
    max_calls: int
    attempts: list[Attempt] = field(default_factory=list)
    refused: UnsupportedError | None = None

    @property
    def optional(self) -> bool:
        """Whether words will do."""
        return self.choice in ("auto", "none")

    @property
    def callable(self) -> Mapping[str, ToolSpec]:
        """The tools that may be called, by name."""
        if self.choice == "none":
            return {}
        return {t.name: t for t in self.tools if self.choice in ("auto", "required", t.name)}

    def check(self) -> None:
        """Raise ConfigurationError for a question that makes no sense."""
        names = [tool.name for tool in self.tools]
        if self.choice not in RESERVED and self.choice not in names:
            raise UnknownNameError("tool", self.choice, names)
        if not self.tools:
            raise ConfigurationError("there are no tools to call", fix="give at least one")
        if self.parameters.n != 1 or self.parameters.structured is not None:
            raise ConfigurationError(
                "tool calls are asked for one answer at a time, without a constraint of one's own",
                fix="leave n and structured out of the parameters",
            )
        if self.max_calls < 1:
            raise ConfigurationError("max_calls must be at least 1")

    def request(
        self, messages: tuple[Message, ...], parameters: SamplingParameters | None = None
    ) -> SampleRequest:
        """A request without native tools."""
        return SampleRequest(
            prompt=ChatPrompt(messages), parameters=parameters or self.parameters, model=self.model
        )

    async def ask(
        self, step: Step, request: SampleRequest, read: Callable[[Completion], _Answer]
    ) -> _Answer | None:
        """Put a request; None if the engine does not do this. Every attempt is noted."""
        try:
            response = await self.sampler.sample(request)
        except UnsupportedError as error:
            self.refused = error
            self.attempts.append(Attempt(step=step, request=request, why=error.message))
            return None
        completion = _only(response)
        answer = read(completion)
        if _is_cut_off(completion, response, request):
            limit = request.parameters.max_tokens
            why = f"max_tokens ({limit}) or the context's end cut it off"
            answer = _Answer(step, CallOutcome.TRUNCATED, text=completion.text, why=why)
        self.attempts.append(
            Attempt(
                step=step,
                request=request,
                response=response,
                outcome=answer.outcome,
                why=answer.why,
            )
        )
        return answer

    def judge(self, step: Step, found: Sequence[FoundCall], text: str) -> _Answer:
        """The answer that consists of these calls and this text."""
        if not found:
            if self.optional and text.strip():
                return _Answer(step, CallOutcome.ANSWERED, text=text)
            why = "there is no call in it" if text.strip() else "it is empty"
            return _Answer(step, CallOutcome.MISSING, text=text, why=why)
        taken = {call.id for message in self.messages for call in message.tool_calls}
        checked = check_calls(found, self.callable, max_calls=self.max_calls, taken=taken)
        if checked.problem:
            return _Answer(step, CallOutcome.INVALID, text=text, why=checked.problem)
        return _Answer(step, CallOutcome.CALLED, text=text, calls=checked.calls)


def _telling(before: _Answer | None, given: _Answer | None) -> _Answer | None:
    """What is reported of two steps: the later one's, but no lack of a call hides one cut off."""
    if before is None or given is None:
        return given or before
    hides = before.outcome is CallOutcome.TRUNCATED and given.outcome is CallOutcome.MISSING
    return before if hides else given


async def _native(question: _Question) -> _Answer | None:
    def read(completion: Completion) -> _Answer:
        text = completion.text
        calls = [
            FoundCall(id=c.id, name=c.name, arguments=c.arguments) for c in completion.tool_calls
        ]
        if not calls and (mark := leftover_markup(text)):
            why = f"the server left the call as markup ({mark}) in the text: wrong tool parser"
            return _Answer(Step.NATIVE, CallOutcome.MISSING, text=text, why=why)
        return question.judge(Step.NATIVE, calls, text)

    request = msgspec.structs.replace(
        question.request(question.messages),
        tools=tuple(tool.definition() for tool in question.tools),
        tool_choice=question.choice,
    )
    return await question.ask(Step.NATIVE, request, read)


async def _constrained(question: _Question) -> _Answer | None:
    def read(completion: Completion) -> _Answer:
        text = completion.text
        try:
            found = read_answer(text)
        except ValueError as error:
            why = f"it is not the JSON that was asked for: {error}"
            return _Answer(Step.CONSTRAINED, CallOutcome.INVALID, text=text, why=why)
        if isinstance(found, str):
            return question.judge(Step.CONSTRAINED, (), found)
        return question.judge(Step.CONSTRAINED, found, "")

    if question.choice == "none":
        return await _in_words(question, Step.CONSTRAINED)
    tools = tuple(question.callable.values())
    optional, most = question.optional, question.max_calls
    schema = answer_schema(tools, optional=optional, max_calls=most)
    constraint = StructuredOutput(json_schema=schema)
    parameters = msgspec.structs.replace(question.parameters, structured=constraint)
    instructions = constrained_instructions(tools, optional=optional, max_calls=most)
    messages = with_system(flattened(question.messages), instructions)
    answer = await question.ask(Step.CONSTRAINED, question.request(messages, parameters), read)
    penalty = max(parameters.frequency_penalty, LOOP_PENALTY)
    if (
        answer
        and answer.outcome is CallOutcome.TRUNCATED
        and penalty > parameters.frequency_penalty
    ):
        parameters = msgspec.structs.replace(parameters, frequency_penalty=penalty)
        again = question.request(messages, parameters)
        answer = await question.ask(Step.CONSTRAINED, again, read) or answer
    return answer


async def _prompted(question: _Question) -> _Answer | None:
    def read(completion: Completion) -> _Answer:
        text = completion.text
        said = strip_reasoning(text) if question.optional else text
        found = find_calls(text, question.callable, alone=question.optional)
        if not found and (mark := leftover_markup(said)):
            why = f"what follows {mark} cannot be read"
            return _Answer(Step.PROMPTED, CallOutcome.INVALID, text=text, why=why)
        return question.judge(Step.PROMPTED, found, text if said.strip() and not found else "")

    if question.choice == "none":
        return await _in_words(question, Step.PROMPTED)
    instructions = prompted_instructions(
        question.callable.values(), optional=question.optional, max_calls=question.max_calls
    )
    messages = with_system(flattened(question.messages), instructions)
    answer = await question.ask(Step.PROMPTED, question.request(messages), read)
    if answer is None or answer.outcome in (*DONE, CallOutcome.TRUNCATED):
        return answer
    written = question.attempts[-1].response
    assert written is not None
    said = Message("assistant", written.completions[0].text)
    repaired = (*messages, said, repair(answer.why or ""))
    return await question.ask(Step.PROMPTED, question.request(repaired), read) or answer


async def _in_words(question: _Question, step: Step) -> _Answer | None:
    request = question.request(flattened(question.messages))
    return await question.ask(step, request, lambda c: question.judge(step, (), c.text))


_STEPS: Final[Mapping[Step, Callable[[_Question], Awaitable[_Answer | None]]]] = {
    Step.NATIVE: _native,
    Step.CONSTRAINED: _constrained,
    Step.PROMPTED: _prompted,
}


def _only(response: SampleResponse) -> Completion:
    if not response.completions:
        raise MalformedResponseError("the reply has no completion")
    return response.completions[0]


def _is_cut_off(completion: Completion, response: SampleResponse, request: SampleRequest) -> bool:
    # vLLM says "tool_calls" even where max_tokens cut off what came behind the first call
    full = response.completion_tokens >= request.parameters.max_tokens
    return completion.finish_reason == "length" or (
        completion.finish_reason == "tool_calls" and full
    )
