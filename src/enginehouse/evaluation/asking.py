"""Asks the sampler for one sample and makes its record."""

from __future__ import annotations

import asyncio

import msgspec

from enginehouse.core.errors import (
    MalformedResponseError,
    TaskError,
    UnsupportedError,
    WireError,
)
from enginehouse.core.messages import ChatPrompt, Message
from enginehouse.core.sampler import Capabilities, Capability, Sampler, SampleRequest
from enginehouse.core.sampling import SamplingParameters
from enginehouse.evaluation.loglikelihood import ask_choices, continuation_of, encode_choices
from enginehouse.evaluation.plan import TaskPlan, TaskPlans, sample_seed
from enginehouse.evaluation.records import EvaluationSpec, Failure, SampleRecord
from enginehouse.evaluation.tool_calls import ask_calls, require_steps, with_result
from enginehouse.tasks.base import CallTools, Choose, Generate, Item, Question, implements
from enginehouse.tools import Ladder

_BEGINNING = 16  # samples whose prompts are made at the same time
_SCORERS = {Generate: "score_text", Choose: "score_choice", CallTools: "score_calls"}
_FOR_CHOICES = (Capability.TOKENIZE, Capability.TOKENS, Capability.PROMPT_LOGPROBS)


class Unit(msgspec.Struct, frozen=True, gc=False):
    """One sample to ask."""

    plan: TaskPlan
    position: int
    repeat: int


class Asker:
    """Asks one sampler for samples as the spec says. `provenance` is the record's id."""

    def __init__(
        self, spec: EvaluationSpec, sampler: Sampler, *, provenance: int, template: str | None
    ) -> None:
        self.seeded = Capability.SEED in sampler.capabilities.supports
        self._spec = spec
        self._sampler = sampler
        self._provenance = provenance
        # First come, first served: a sample that is ready at once must not overtake earlier ones
        # whose prompts the server still has to encode, or those wait behind every long answer.
        self._turnstile = asyncio.Semaphore(_BEGINNING)
        self._ladder = Ladder(spec.tool_steps, template=template)
        self._common = SamplingParameters(
            temperature=spec.temperature,
            top_p=spec.top_p,
            top_k=spec.top_k,
            min_p=spec.min_p,
            repetition_penalty=spec.repetition_penalty,
            presence_penalty=spec.presence_penalty,
            frequency_penalty=spec.frequency_penalty,
        )

    async def ask(self, unit: Unit) -> SampleRecord:
        """Ask once. A WireError becomes the record's failure; anything else is raised.

        That includes ConnectionFailedError: the caller decides whether the server is gone. Raises
        TaskError if the task cannot make the question.
        """
        item = unit.plan.item(unit.position)
        record = SampleRecord(
            task=unit.plan.name,
            item=item.id,
            position=unit.position,
            repeat=unit.repeat,
            provenance=self._provenance,
            requests=(),
        )
        question = question_of(unit.plan, item)
        if isinstance(question, Choose):
            return await self._choose(question, record)
        if isinstance(question, CallTools):
            return await self._call(question, record, max_tokens=unit.plan.max_tokens)
        return await self._generate(question, record, max_tokens=unit.plan.max_tokens)

    async def _generate(
        self, question: Generate, record: SampleRecord, *, max_tokens: int | None
    ) -> SampleRecord:
        request = SampleRequest(
            prompt=with_system(question.prompt, self._spec),
            parameters=self._parameters(
                record, max_tokens=max_tokens or question.max_tokens, stop=question.stop
            ),
        )
        async with self._turnstile:
            pass
        try:
            response = await self._sampler.sample(request)
            if not response.completions:
                raise MalformedResponseError("the reply has no completion")
        except WireError as error:
            return msgspec.structs.replace(record, requests=(request,), failure=Failure.of(error))
        return msgspec.structs.replace(record, requests=(request,), responses=(response,))

    async def _call(
        self, question: CallTools, record: SampleRecord, *, max_tokens: int | None
    ) -> SampleRecord:
        question = msgspec.structs.replace(
            question, prompt=with_system(question.prompt, self._spec)
        )
        parameters = self._parameters(record, max_tokens=max_tokens or question.max_tokens)
        async with self._turnstile:
            pass
        try:
            result = await ask_calls(
                self._sampler, question, parameters=parameters, ladder=self._ladder
            )
        except WireError as error:
            return msgspec.structs.replace(record, failure=Failure.of(error))
        return with_result(record, result)

    def _parameters(
        self, record: SampleRecord, *, max_tokens: int, stop: tuple[str, ...] = ()
    ) -> SamplingParameters:
        spec = self._spec
        return msgspec.structs.replace(
            self._common,
            max_tokens=max_tokens,
            stop=stop if spec.stop is None else spec.stop,
            seed=sample_seed(spec.seed, record.task, record.item, record.repeat)
            if self.seeded
            else None,
        )

    async def _choose(self, question: Choose, record: SampleRecord) -> SampleRecord:
        requests: tuple[SampleRequest, ...] = ()
        try:
            async with self._turnstile:
                choices = await encode_choices(self._sampler, question)
            requests = tuple(choice.request for choice in choices)
            responses = await ask_choices(self._sampler, choices)
            continuations = tuple(map(continuation_of, choices, responses))
        except WireError as error:
            return msgspec.structs.replace(record, requests=requests, failure=Failure.of(error))
        return msgspec.structs.replace(
            record,
            requests=requests,
            responses=tuple(
                msgspec.structs.replace(r, prompt_logprobs=None, prompt_token_ids=None)
                for r in responses
            ),
            continuations=continuations,
        )


def with_system(prompt: ChatPrompt, spec: EvaluationSpec) -> ChatPrompt:
    """The prompt with the evaluation's own system message, if it has one."""
    if spec.system is None:
        return prompt
    turns = [m for m in prompt.messages if m.role != "system"]
    return ChatPrompt((Message(role="system", content=spec.system), *turns))


def require_supported(
    spec: EvaluationSpec, *, tasks: TaskPlans, capabilities: Capabilities
) -> None:
    """Raise UnsupportedError if an engine with these capabilities does not support the tasks."""
    for plan in tasks:
        require_capabilities(plan, capabilities, spec=spec)


def require_capabilities(
    plan: TaskPlan, capabilities: Capabilities, *, spec: EvaluationSpec
) -> None:
    """Raise UnsupportedError if the engine does not support this task's questions.

    Raises TaskError if the task cannot score the answers to them.
    """
    question = question_of(plan, plan.item(0))
    if (scorer := _SCORERS.get(type(question))) is None or not implements(plan.task, scorer):
        asks = type(question).__name__
        raise TaskError(
            f"task {plan.name} cannot be scored",
            why=f"it asks {asks} and lacks {scorer}"
            if scorer
            else f"its ask returned {asks}, not Generate, Choose or CallTools",
            fix="correct the task's class",
        )
    if isinstance(question, CallTools):
        require_steps(plan.name, spec.tool_steps, capabilities)
    needed = _FOR_CHOICES if isinstance(question, Choose) else (Capability.CHAT,)
    if missing := [c.value for c in needed if c not in capabilities.supports]:
        raise UnsupportedError(
            f"this engine cannot answer task {plan.name}",
            why=f"it does not support {', '.join(missing)}",
            fix="leave the task out, or use an engine that does: see `enginehouse engines`",
        )


def requests_of(plan: TaskPlan) -> int:
    """The requests that one sample of the task takes, going by its first item."""
    question = question_of(plan, plan.item(0))
    return len(question.continuations) if isinstance(question, Choose) else 1


def question_of(plan: TaskPlan, item: Item) -> Question:
    """The task's question about the item. Raises TaskError if it cannot make one."""
    try:
        return plan.task.ask(item)
    except Exception as error:  # a user's template may raise anything
        raise TaskError(
            f"task {plan.name} cannot make a question of item {item.id}",
            why=f"{type(error).__name__}: {error}",
            fix="correct the task or its data and start a new run",
        ) from error
