"""Asks for tool calls in several ways, until there is a valid one."""

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
from enginehouse.core.sampler import Completion, Sampler, SampleRequest
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

# A small model repeats a string, a number or a list item until max_tokens cuts it off. With this
# penalty SmolLM2-135M left every loop seen when it was asked once more; nothing else changes.
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

    `choice` is "auto" (calls or text), "required" (a call), "none" (text) or the name of the tool
    to call. The steps of `ladder` are tried in turn, each only if the one before gave no call, an
    invalid one or one that was cut off, or if the engine does not support it: native calls;
    decoding constrained to a JSON schema, repeated with a frequency penalty if max_tokens cut the
    answer off; prompted text, with one repair turn that quotes the error. Without a ladder all
    steps are tried and nothing is remembered. A call keeps the id that the engine gave it, unless
    that is missing or already used in `messages`.

    Raises WireError (a lost connection, a refused key or a rate limit never leads to the next
    step), UnsupportedError if the engine supports none of the steps, and ConfigurationError for
    invalid tools, choice or parameters.
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
    ladder = ladder or Ladder()
    answer: _Answer | None = None
    for step in ladder.order(model):
        latest = await _STEPS[step](question)
        ladder.note(model, step, latest.outcome if latest else None)
        if latest and not (
            # report an answer that was cut off rather than a later one without a call
            answer
            and answer.outcome is CallOutcome.TRUNCATED
            and latest.outcome is CallOutcome.MISSING
        ):
            answer = latest
        if latest and latest.outcome in DONE:
            break
    if answer is None:
        assert question.refused is not None
        raise question.refused
    return ToolResult(
        outcome=answer.outcome,
        step=answer.step,
        calls=answer.calls,
        text=answer.text,
        attempts=tuple(question.attempts),
    )


@dataclass(frozen=True)
class _Answer:
    """The content of one answer; `why` says what is wrong with it."""

    step: Step
    outcome: CallOutcome
    text: str = ""
    calls: tuple[CheckedCall, ...] = ()
    why: str | None = None


@dataclass
class _Question:
    """What to ask for, and the attempts so far."""

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
        """Whether an answer without a call is allowed."""
        return self.choice in ("auto", "none")

    @property
    def callable(self) -> Mapping[str, ToolSpec]:
        """The tools that may be called, by name."""
        if self.choice == "none":
            return {}
        return {t.name: t for t in self.tools if self.choice in ("auto", "required", t.name)}

    def check(self) -> None:
        """Raise ConfigurationError for an invalid question."""
        names = [tool.name for tool in self.tools]
        if self.choice not in RESERVED and self.choice not in names:
            raise UnknownNameError("tool", self.choice, names)
        if not self.tools:
            raise ConfigurationError("there are no tools to call", fix="pass at least one")
        if self.parameters.n != 1 or self.parameters.structured is not None:
            raise ConfigurationError(
                "tool calls need n = 1 and no structured output",
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
        """Ask once and record the attempt. None if the engine does not support this step."""
        try:
            response = await self.sampler.sample(request)
        except UnsupportedError as error:
            self.refused = error
            self.attempts.append(Attempt(step=step, request=request, why=error.message))
            return None
        if not response.completions:
            raise MalformedResponseError("the reply has no completion")
        completion = response.completions[0]
        answer = read(completion)
        limit = request.parameters.max_tokens
        # vLLM says "tool_calls" even if max_tokens cut the answer off after the first call
        is_full = completion.finish_reason == "tool_calls" and response.completion_tokens >= limit
        if is_full or completion.finish_reason == "length":
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
        """The answer with these calls and this text."""
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
            why = f"it is not the requested JSON: {error}"
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
