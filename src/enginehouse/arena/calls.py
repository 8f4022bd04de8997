"""The calls of one match: answered by a record of them if there is one, by a model otherwise."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import msgspec

from enginehouse.arena.forms import AnswerForm
from enginehouse.arena.models import ActiveModel, Model
from enginehouse.arena.prompts import Prompt
from enginehouse.arena.recordings import Cassette, Recordings
from enginehouse.arena.records import CallFailure, CallKey, CallRecord
from enginehouse.arena.slots import Rank
from enginehouse.core.errors import (
    ConfigurationError,
    ConnectionFailedError,
    ContextOverflowError,
    ForbiddenError,
    MalformedResponseError,
    NoCreditError,
    ServerError,
    UnauthorizedError,
    UnknownModelError,
    UnsupportedError,
    WireError,
)
from enginehouse.core.sampler import Capabilities, Capability, Delta, SampleRequest, SampleResponse
from enginehouse.core.tool_calls import ToolDefinition
from enginehouse.games.base import ToolAction
from enginehouse.tools import CallOutcome, Ladder, Step, call_tools

OUTAGES: Final = (
    ServerError,
    ConnectionFailedError,
    UnauthorizedError,
    NoCreditError,
    UnknownModelError,
)
"""Errors that every further call would end with, too: they end the experiment, not a match."""


class CallWriter(Protocol):
    """Keeps calls."""

    def write_call(self, record: CallRecord) -> None:
        """Append the record to the journal. Raises StoreError."""
        ...


@dataclass(frozen=True, kw_only=True)
class Question:
    """What an agent is asked; a form's own request comes last.

    The first of `forms` that the engine supports is used. `together` counts the calls that are
    asked at the same time as this one, and of which all must be answered before the next ones.
    """

    key: CallKey
    model: ActiveModel
    prompt: Prompt
    forms: tuple[AnswerForm, ...]
    together: int

    def asked(self, form: AnswerForm) -> Prompt:
        """The whole prompt."""
        *parts, question = self.prompt.ending
        return replace(self.prompt, ending=(*parts, f"{question} {form.request}"))


@dataclass
class Figures:
    """What a match's calls cost, recorded answers included; `asked` and `invalid` are by seat."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    invalid: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Earlier:
    """An answer that was recorded earlier; `journaled`: in this experiment's journal."""

    record: CallRecord
    journaled: bool


class MatchCalls:
    """Answers the calls of one match and keeps the answers. `seed` is the match's.

    `diverged` has by seat the first call that the cassette could not answer; `answered` counts the
    requests that were answered by a model.
    """

    def __init__(
        self,
        *,
        seed: int,
        writer: CallWriter,
        recordings: Recordings,
        cassette: Cassette | None = None,
    ) -> None:
        self.figures = Figures()
        self.answered = 0
        self.diverged: dict[str, CallKey] = {}
        self._seed = seed
        self._writer = writer
        self._recordings = recordings
        self._cassette = cassette
        self._dropped: Counter[tuple[str, str]] = Counter()  # by seat and model
        self._ladders: dict[tuple[str, int], Ladder] = {}

    async def ask(self, question: Question) -> Any:
        """The answer as its form reads it; None if it is invalid.

        Raises WireError, and ConfigurationError if neither a record nor a model can answer.
        """
        key, model = question.key, question.model
        for earlier in self._earlier(key, model):
            record = earlier.record
            form = next((f for f in question.forms if f.name == record.read_by), None)
            if form and question.asked(form).chat(record.dropped) == record.request.prompt:
                self._keep(record, question.asked(form), model, journaled=earlier.journaled)
                return record.value
        for form in question.forms:
            if not form.needs <= model.supports:
                continue
            try:
                return await self._ask_in(form, question)
            except UnsupportedError:
                if form.constraint is None:
                    raise
                model.refused.update(form.needs)
        raise UnsupportedError(
            f"{model.spec.name} supports no way of answering", fix="use an engine with chat"
        )

    async def _ask_in(self, form: AnswerForm, question: Question) -> Any:
        key, model, prompt = question.key, question.model, question.asked(form)
        max_tokens = model.spec.parameters.max_tokens
        dropped = self._fitting(prompt, question.key, model)
        while True:
            parameters = msgspec.structs.replace(model.spec.parameters, structured=form.constraint)
            request = SampleRequest(prompt=prompt.chat(dropped), parameters=parameters)
            try:
                record = await self._send(key, model, request, together=question.together)
                break
            except ContextOverflowError as error:
                model.limit.refuse(prompt, dropped=dropped, max_tokens=max_tokens)
                if dropped >= prompt.droppable:
                    self._note_failure(key, model, request, error)
                    raise
                dropped += math.ceil((prompt.droppable - dropped) / 4)
                dropped = model.limit.fitting(prompt, dropped=dropped, max_tokens=max_tokens)
        assert record.response is not None
        value = form.read(record.response.completions[0])
        record = msgspec.structs.replace(record, value=value, read_by=form.name, dropped=dropped)
        self._keep(record, prompt, model)
        return value

    async def call_tool(
        self, question: Question, *, tools: Sequence[ToolDefinition]
    ) -> ToolAction | None:
        """A valid call of one of the tools, by the steps of tools/calling.py; None if none came.

        The question has no forms. Raises as `ask` does.
        """
        key, model, prompt = question.key, question.model, question.prompt
        max_tokens = model.spec.parameters.max_tokens
        earlier = next(self._earlier(key, model), None)
        dropped = earlier.record.dropped if earlier else self._fitting(prompt, key, model)
        while True:
            try:
                result = await call_tools(
                    _ToolSampler(self, question, dropped),
                    prompt.chat(dropped).messages,
                    tools,
                    choice="required",
                    parameters=model.spec.parameters,
                    max_calls=1,
                    # one for each agent: what another one did would depend on which came first
                    ladder=self._ladders.setdefault((key.seat, key.agent), Ladder()),
                )
                break
            except ContextOverflowError:
                model.limit.refuse(prompt, dropped=dropped, max_tokens=max_tokens)
                if dropped >= prompt.droppable:
                    raise
                dropped += math.ceil((prompt.droppable - dropped) / 4)
            except UnsupportedError as error:
                if model.model is None:
                    raise _nobody(key, model) from error
                raise
        if result.outcome is CallOutcome.CALLED:
            return ToolAction(result.calls[0].name, result.calls[0].arguments)
        return None

    async def answer_attempt(
        self, question: Question, request: SampleRequest, *, attempt: int, dropped: int
    ) -> SampleResponse:
        """The answer to one request of `call_tool`. Raises WireError."""
        key = msgspec.structs.replace(question.key, attempt=attempt)
        for earlier in self._earlier(key, question.model):
            record = earlier.record
            if _is_same(record.request, request) and record.response is not None:
                self._keep(record, question.prompt, question.model, journaled=earlier.journaled)
                return record.response
            if question.model.model is None:
                raise UnsupportedError(f"{key.kind} was asked for in another way")
        record = await self._send(key, question.model, request, together=question.together)
        response = record.response
        assert response is not None
        record = msgspec.structs.replace(record, read_by=_step_of(request), dropped=dropped)
        self._keep(record, question.prompt, question.model)
        return response

    async def _send(
        self, key: CallKey, model: ActiveModel, request: SampleRequest, *, together: int
    ) -> CallRecord:
        """Ask the model, with the call's own seed; returns the record without its reading."""
        if model.model is None:
            raise _nobody(key, model)
        request = self._completed(request, key, model.model, model.supports)
        try:
            async with model.slots.place(Rank(together, key.turn, key.step)):
                response = await model.model.sampler.sample(request)
            if not response.completions:
                raise MalformedResponseError("the reply has no completion")
        except WireError as error:
            if isinstance(error, ForbiddenError) and not model.has_answered:
                raise UnauthorizedError(
                    error.message,
                    why="not one request was answered so far, so it is not about a single prompt",
                    fix=error.fix,
                    status=error.status,
                ) from error
            if not isinstance(error, (*OUTAGES, UnsupportedError, ContextOverflowError)):
                self._note_failure(key, model, request, error)
            raise
        self.answered += 1
        model.has_answered = True
        return CallRecord(key=key, provenance=model.session, request=request, response=response)

    def _completed(
        self, request: SampleRequest, key: CallKey, model: Model, supports: frozenset[Capability]
    ) -> SampleRequest:
        """The request with its model's name, its seed, and what exact traces need."""
        parameters = request.parameters
        if Capability.SEED in supports:
            parameters = msgspec.structs.replace(parameters, seed=call_seed(self._seed, key))
        if {Capability.TOKEN_IDS, Capability.LOGPROBS} <= supports and parameters.logprobs is None:
            parameters = msgspec.structs.replace(parameters, logprobs=0)
        return msgspec.structs.replace(request, model=model.send_as, parameters=parameters)

    def _earlier(self, key: CallKey, model: ActiveModel) -> Iterator[_Earlier]:
        """The answers to `key` in earlier records, this experiment's own first."""
        if (record := self._recordings.call(key)) is not None:
            yield _Earlier(record, journaled=True)
        if self._cassette is not None:
            provenance = model.model.provenance if model.model else None
            record = self._cassette.call(key, model.spec, provenance=provenance)
            if record is not None:
                record = msgspec.structs.replace(record, provenance=model.session, replayed=True)
                yield _Earlier(record, journaled=False)

    def _keep(
        self, record: CallRecord, prompt: Prompt, model: ActiveModel, *, journaled: bool = False
    ) -> None:
        """Count an answer, and journal it unless it is in the journal already."""
        response = record.response
        assert response is not None
        if not journaled:
            self._writer.write_call(record)
        if self._cassette is not None and not record.replayed:
            self.diverged.setdefault(record.key.seat, record.key)
        self.figures.calls += 1
        self.figures.prompt_tokens += response.prompt_tokens
        self.figures.completion_tokens += response.completion_tokens
        model.limit.learn(prompt, response, dropped=record.dropped)
        place = record.key.seat, model.spec.name
        history = min(record.dropped, len(prompt.history))
        self._dropped[place] = max(self._dropped[place], history)

    def _fitting(self, prompt: Prompt, key: CallKey, model: ActiveModel) -> int:
        return model.limit.fitting(
            prompt,
            dropped=self._dropped[key.seat, model.spec.name],
            max_tokens=model.spec.parameters.max_tokens,
        )

    def _note_failure(
        self, key: CallKey, model: ActiveModel, request: SampleRequest, error: WireError
    ) -> None:
        self._writer.write_call(
            CallRecord(
                key=key,
                provenance=model.session,
                request=request,
                failure=CallFailure(kind=type(error).__name__, message=error.message),
            )
        )


class _ToolSampler:
    """Numbers the requests of one tool call, and has the match answer them."""

    def __init__(self, calls: MatchCalls, question: Question, dropped: int) -> None:
        self._calls = calls
        self._question = question
        self._dropped = dropped
        self._attempts = 0
        self.capabilities = Capabilities(supports=question.model.supports)

    async def sample(self, request: SampleRequest) -> SampleResponse:
        """The answer to the next request. Raises WireError."""
        response = await self._calls.answer_attempt(
            self._question, request, attempt=self._attempts, dropped=self._dropped
        )
        self._attempts += 1
        return response

    def stream(self, request: SampleRequest) -> AsyncIterator[Delta]:
        """Not used for tool calls."""
        raise NotImplementedError

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Not used for tool calls."""
        raise NotImplementedError


def call_seed(match_seed: int, key: CallKey) -> int:
    """A call's seed in [0, 2**31): the same in matches with the same seed, so that they are paired.

    The first 31 bits of the SHA-256 of a JSON array of the match's seed and the rest of the key.
    """
    parts = (match_seed, key.turn, key.seat, key.agent, key.kind, key.step, key.attempt)
    digest = hashlib.sha256(msgspec.json.encode(parts)).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _is_same(one: SampleRequest, other: SampleRequest) -> bool:
    return (
        one.prompt == other.prompt
        and one.tools == other.tools
        and one.parameters.structured == other.parameters.structured
    )


def _step_of(request: SampleRequest) -> str:
    if request.tools:
        return Step.NATIVE.value
    return (Step.CONSTRAINED if request.parameters.structured else Step.PROMPTED).value


def _nobody(key: CallKey, model: ActiveModel) -> ConfigurationError:
    return ConfigurationError(
        f"nobody answers for {model.spec.name}",
        why=f"match {key.match}, turn {key.turn}: there is no record of the {key.kind} of "
        f"{key.seat}'s agent {key.agent} with this prompt",
        fix="leave --offline out, so that the model is asked",
    )
