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
from enginehouse.core.sampler import Capabilities, Capability, Delivery, Sampler, SampleRequest
from enginehouse.core.sampling import SamplingParameters
from enginehouse.evaluation.loglikelihood import ask_choices, continuation_of, encode_choices
from enginehouse.evaluation.patience import patient
from enginehouse.evaluation.plan import TaskPlan, TaskPlans, sample_seed
from enginehouse.evaluation.records import EvaluationSpec, Failure, SampleRecord, TaskSpec
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
            min_p=spec.min_p,
            repetition_penalty=spec.repetition_penalty,
            presence_penalty=spec.presence_penalty,
            frequency_penalty=spec.frequency_penalty,
        )
        apart = any(task.concurrency is not None for task in spec.native)
        self._shared = _semaphore(spec.concurrency if apart else None)
        self._samplers: dict[str, Sampler] = {}

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
        settings = unit.plan.settings
        if isinstance(question, Choose):
            return await self._choose(question, record, settings)
        if isinstance(question, CallTools):
            return await self._call(question, record, settings)
        return await self._generate(question, record, settings)

    async def _generate(
        self, question: Generate, record: SampleRecord, settings: TaskSpec
    ) -> SampleRecord:
        request = SampleRequest(
            prompt=with_system(question.prompt, settings.system),
            parameters=self._parameters(
                record, settings, max_tokens=question.max_tokens, stop=question.stop
            ),
        )
        async with self._turnstile:
            pass
        try:
            response = await self._sampler_of(settings).sample(request)
            if not response.completions:
                raise MalformedResponseError("the reply has no completion")
        except WireError as error:
            return msgspec.structs.replace(record, requests=(request,), failure=Failure.of(error))
        return msgspec.structs.replace(record, requests=(request,), responses=(response,))

    async def _call(
        self, question: CallTools, record: SampleRecord, settings: TaskSpec
    ) -> SampleRecord:
        question = msgspec.structs.replace(
            question, prompt=with_system(question.prompt, settings.system)
        )
        parameters = self._parameters(record, settings, max_tokens=question.max_tokens)
        async with self._turnstile:
            pass
        try:
            result = await ask_calls(
                self._sampler_of(settings), question, parameters=parameters, ladder=self._ladder
            )
        except WireError as error:
            return msgspec.structs.replace(record, failure=Failure.of(error))
        return with_result(record, result)

    def _sampler_of(self, settings: TaskSpec) -> Sampler:
        """The sampler, as patient as the task says, and with its bound of requests in flight."""
        if (sampler := self._samplers.get(settings.name)) is None:
            own = next(task for task in self._spec.tasks if task.name == settings.name)
            sampler = self._samplers[settings.name] = patient(
                self._sampler,
                delivery=Delivery(
                    timeout=settings.request_timeout, max_retries=settings.max_retries
                ),
                bound=self._shared if own.concurrency is None else _semaphore(own.concurrency),
            )
        return sampler

    def _parameters(
        self,
        record: SampleRecord,
        settings: TaskSpec,
        *,
        max_tokens: int,
        stop: tuple[str, ...] = (),
    ) -> SamplingParameters:
        spec = self._spec
        return msgspec.structs.replace(
            self._common,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            max_tokens=settings.max_tokens or max_tokens,
            stop=stop if spec.stop is None else spec.stop,
            seed=sample_seed(spec.seed, record.task, record.item, record.repeat)
            if self.seeded
            else None,
        )

    async def _choose(
        self, question: Choose, record: SampleRecord, settings: TaskSpec
    ) -> SampleRecord:
        sampler = self._sampler_of(settings)
        requests: tuple[SampleRequest, ...] = ()
        try:
            async with self._turnstile:
                choices = await encode_choices(sampler, question)
            requests = tuple(choice.request for choice in choices)
            responses = await ask_choices(sampler, choices)
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


def with_system(prompt: ChatPrompt, system: str | None) -> ChatPrompt:
    """The prompt with this system message in place of its own; None changes nothing."""
    if system is None:
        return prompt
    turns = [m for m in prompt.messages if m.role != "system"]
    return ChatPrompt((Message(role="system", content=system), *turns))


def _semaphore(size: int | None) -> asyncio.Semaphore | None:
    return asyncio.Semaphore(size) if size is not None else None


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
