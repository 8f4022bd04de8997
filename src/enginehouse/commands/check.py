"""`enginehouse check`: everything that a server should do, tried once, as its users would.

The conformance suite, which expects exact answers, is for engines: --conformance runs it instead.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from enginehouse.client.retry import Retries
from enginehouse.client.sampler import HTTPSampler
from enginehouse.client.transport import Timeouts, WireRequest, open_transport
from enginehouse.commands.configuration import CheckConfig
from enginehouse.core.errors import (
    MalformedResponseError,
    UnsupportedError,
    WireError,
)
from enginehouse.core.messages import ChatPrompt, Message, Prompt, TextPrompt, TokenPrompt
from enginehouse.core.sampler import (
    Capability,
    Completion,
    SampleRequest,
    SampleResponse,
)
from enginehouse.core.sampling import SamplingParameters, StructuredOutput
from enginehouse.deployment.opening import open_deployment
from enginehouse.deployment.running_servers import record_at
from enginehouse.deployment.samplers import make_sampler
from enginehouse.engines.base import Engine, ServedEngine
from enginehouse.results.check import CheckLine, CheckReport, Outcome
from enginehouse.runtime.context import Context
from enginehouse.servers.endpoint import Server
from enginehouse.statistics.percentiles import Percentiles, percentiles
from enginehouse.tools.specification import ToolSpec

_QUESTION = "What is the capital of France?"
_TEXT = "The capital of France is"
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 40}},
    "required": ["city"],
    "additionalProperties": False,
}
_TOOL = ToolSpec(name="visit", description="Travel to a city.", parameters=_SCHEMA)
_CHOICES = ("Paris", "Rome")
_USERS_TOKENS = 32
_BRIEFLY = Retries(attempts=2, base=0.5, cap=1.0, patience=30.0, endurance=60.0)
_TIMEOUTS = Timeouts(total=300.0)
_HEALTH_TIMEOUTS = Timeouts(total=10.0)


@dataclass(frozen=True)
class _Target:
    """Who is checked."""

    engine: Engine
    server: Server
    sampler: HTTPSampler

    def supports(self, capability: Capability) -> bool:
        return capability in self.sampler.capabilities.supports

    def prompt(self, question: str = _QUESTION, text: str = _TEXT) -> Prompt:
        """A question where there is chat, else a text."""
        if self.supports(Capability.CHAT):
            return ChatPrompt((Message("user", question),))
        return TextPrompt(text)

    async def ask(self, prompt: Prompt, **given: Any) -> SampleResponse:
        return await self.sampler.sample(_request(prompt, **given))


@dataclass(frozen=True)
class _Probe:
    """One line. `run` says what it found, or raises WireError."""

    name: str
    run: Callable[[_Target], Awaitable[str]]
    needs: Capability | None = None


async def run_check(config: CheckConfig, context: Context) -> CheckReport:
    """Try everything once; only a server of our own is started, and stopped at the end.

    What fails is in the report. Raises what `open_deployment` does.
    """
    plan, settings = config.plan, config.settings
    if plan.url and plan.engine is None and (record := record_at(plan.url, layout=context.layout)):
        plan = plan.model_copy(update={"engine": record.engine})  # one of our own servers
    async with open_deployment(plan, context, concurrency=settings.users) as deployment:
        server = deployment.server
        async with make_sampler(
            server,
            deployment.engine,
            concurrency=settings.users,
            model=deployment.sampler.model,
            timeouts=_TIMEOUTS,
            retries=_BRIEFLY,
        ) as sampler:
            target = _Target(deployment.engine, server, sampler)
            if settings.conformance:
                lines, latency = await _conformance(target), percentiles([])
            else:
                lines = [await _line(probe, target) for probe in (*_PROBES, *_adapters(target))]
                users, latency = await _users(target, count=settings.users)
                lines.append(users)
    return CheckReport(
        url=server.base_url,
        model=sampler.model,
        engine=server.engine,
        engine_version=server.version,
        lines=tuple(lines),
        latency=latency,
    )


async def _conformance(target: _Target) -> list[CheckLine]:
    """What an engine must keep to be used through Enginehouse; a line for each case."""
    from enginehouse.testing.check_engine import CASES, check

    outcomes = {
        "passed": Outcome.PASSED,
        "failed": Outcome.FAILED,
        "skipped": Outcome.NOT_SUPPORTED,
    }
    return [
        CheckLine(
            name=result.name,
            outcome=outcomes[result.outcome],
            says=result.detail or CASES[result.name].promise,
            seconds=result.seconds,
        )
        for result in await check(target.sampler)
    ]


async def _line(probe: _Probe, target: _Target) -> CheckLine:
    if probe.needs is not None and not target.supports(probe.needs):
        return CheckLine(
            name=probe.name,
            outcome=Outcome.NOT_SUPPORTED,
            says=f"{target.engine.name} does not declare {probe.needs.replace('_', ' ')}",
        )
    begun = time.perf_counter()
    try:
        says = await probe.run(target)
    except UnsupportedError as error:
        return _failed(probe.name, error, begun=begun, outcome=Outcome.NOT_SUPPORTED)
    except WireError as error:
        return _failed(probe.name, error, begun=begun)
    seconds = time.perf_counter() - begun
    return CheckLine(name=probe.name, outcome=Outcome.PASSED, says=says, seconds=seconds)


def _failed(
    name: str, error: WireError, *, begun: float, outcome: Outcome = Outcome.FAILED
) -> CheckLine:
    says = f"{error.message}: {error.why}" if error.why else error.message
    seconds = time.perf_counter() - begun
    return CheckLine(name=name, outcome=outcome, says=says, fix=error.fix, seconds=seconds)


def _request(prompt: Prompt, **given: Any) -> SampleRequest:
    own = {name: given.pop(name) for name in ("model", "tools", "tool_choice") if name in given}
    parameters = SamplingParameters(**{"max_tokens": 16} | given)
    return SampleRequest(prompt=prompt, parameters=parameters, **own)


def _answer(response: SampleResponse) -> Completion:
    completion = response.completions[0] if response.completions else None
    if completion is None or not completion.text.strip():
        raise MalformedResponseError(
            "the answer is empty", fix="try another prompt with `enginehouse chat`; read its log"
        )
    return completion


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 40 else f"{line[:39]}…")


async def _health(target: _Target) -> str:
    if not isinstance(target.engine, ServedEngine):
        raise UnsupportedError(f"{target.engine.name} has no endpoint for it")
    path = target.engine.endpoints.health
    async with open_transport(
        target.server.base_url,
        api_key=target.server.api_key,
        authorize=target.engine.wire.authorize,
        timeouts=_HEALTH_TIMEOUTS,
    ) as transport:
        reply = await transport.send(WireRequest("GET", path))
    if reply.status == 404 and target.server.version is None:
        raise UnsupportedError(
            f"there is no {path}, so it may not be {target.engine.name}",
            fix="name its engine with --engine; `enginehouse engines` lists them",
        )
    if reply.status != 200:
        raise MalformedResponseError(
            f"{path} answered {reply.status}",
            fix="read the server's log: it may still be starting, or its engine may have died",
        )
    return f"{path} answered in {reply.elapsed * 1000:,.0f} ms"


async def _models(target: _Target) -> str:
    names = await target.sampler.models()
    wanted = target.sampler.model
    if wanted not in names and isinstance(target.engine, ServedEngine):
        raise MalformedResponseError(
            f"the list has no {wanted!r}: {', '.join(names) or 'it is empty'}",
            fix="name one of the list",
        )
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


async def _chat(target: _Target) -> str:
    response = await target.ask(ChatPrompt((Message("user", _QUESTION),)))
    text = _answer(response).text
    counts = f"{response.prompt_tokens} + {response.completion_tokens} tokens"
    return f"answered {_shown(text)} in {response.timing.elapsed:.2f} s, {counts}"


async def _text(target: _Target) -> str:
    response = await target.ask(TextPrompt(_TEXT))
    return f"continued with {_shown(_answer(response).text)}"


async def _tokens(target: _Target) -> str:
    ids = await target.sampler.tokenize(_TEXT)
    response = await target.ask(TokenPrompt(ids), max_tokens=4)
    _answer(response)
    return f"{len(ids)} token ids were continued"


async def _stream(target: _Target) -> str:
    begun = time.perf_counter()
    pieces = [
        time.perf_counter() - begun
        async for delta in target.sampler.stream(_request(target.prompt(), max_tokens=32))
        if delta.text
    ]
    if not pieces:
        raise MalformedResponseError("the stream had no text")
    first, last = f"{pieces[0]:.2f}", f"{pieces[-1]:.2f}"
    return f"{len(pieces)} pieces, the first after {first} s, the last after {last} s"


async def _tools(target: _Target) -> str:
    prompt = target.prompt("I want to see the Eiffel Tower. Call the tool.")
    tools = (_TOOL.definition(),)
    response = await target.ask(prompt, tools=tools, tool_choice="required", max_tokens=64)
    calls = response.completions[0].tool_calls
    if not calls:
        raise MalformedResponseError(
            f"a call was required, the answer was {_shown(response.completions[0].text)}",
            fix="the server's tool-call parser may be for another model family; call_tools() "
            "needs none",
        )
    call = calls[0]
    try:
        wrong = _TOOL.check(json.loads(call.arguments))
    except (ValueError, RecursionError):
        wrong = "its arguments are not JSON"
    if call.name != _TOOL.name or wrong:
        raise MalformedResponseError(
            f"the call is not valid: {call.name}({_shown(call.arguments)})"
            + (f": {wrong}" if wrong else ""),
            fix="call_tools() validates, and falls back to constrained and prompted calls",
        )
    return f"called {call.name}({' '.join(call.arguments.split())})"


async def _schema(target: _Target) -> str:
    structured = StructuredOutput(json_schema=_SCHEMA)
    response = await target.ask(
        target.prompt(f"{_QUESTION} Answer as JSON."), structured=structured, max_tokens=64
    )
    text = _answer(response).text
    try:
        wrong = _TOOL.check(json.loads(text))
    except (ValueError, RecursionError):
        wrong = "it is not JSON"
    if wrong:
        raise MalformedResponseError(f"{_shown(text)} does not follow the schema: {wrong}")
    return f"answered {' '.join(text.split())}"


async def _choice(target: _Target) -> str:
    structured = StructuredOutput(choice=_CHOICES)
    text = (await target.ask(target.prompt(), structured=structured)).completions[0].text
    if text not in _CHOICES:
        raise MalformedResponseError(f"{_shown(text)} is none of {', '.join(_CHOICES)}")
    return f"chose {text}"


async def _logprobs(target: _Target) -> str:
    response = await target.ask(target.prompt(), logprobs=0, max_tokens=4)
    found = _answer(response).logprobs
    if not found:
        raise MalformedResponseError("the answer has no log-probabilities")
    if bad := [token for token in found if not token.logprob <= 0]:
        raise MalformedResponseError(
            f"{bad[0].text!r} has {bad[0].logprob}, which is not a valid log-probability"
        )
    return f"{len(found)} tokens, the first {found[0].text!r} with {found[0].logprob:.2f}"


_PROBES = (
    _Probe("health", _health),
    _Probe("models", _models),
    _Probe("chat", _chat, Capability.CHAT),
    _Probe("text", _text, Capability.TEXT),
    _Probe("token prompts", _tokens, Capability.TOKENIZE),
    _Probe("streaming", _stream, Capability.STREAM),
    _Probe("tools", _tools, Capability.TOOLS),
    _Probe("JSON schema", _schema, Capability.JSON_SCHEMA),
    _Probe("choice", _choice, Capability.CHOICE),
    _Probe("log-probabilities", _logprobs, Capability.LOGPROBS),
)


def _adapters(target: _Target) -> Iterator[_Probe]:
    """A line for each name beyond the model's own, which is an adapter or an alias."""
    others = [name for name in target.server.models if name != target.sampler.model]
    if not others or not isinstance(target.engine, ServedEngine):
        yield _Probe("adapters", _no_adapters, Capability.ADAPTERS)
        return
    for name in others:

        async def run(target: _Target, name: str = name) -> str:
            response = await target.ask(target.prompt(), model=name)
            return f"answered {_shown(_answer(response).text)}"

        yield _Probe(f"adapter {name}", run, Capability.ADAPTERS)


async def _no_adapters(target: _Target) -> str:
    raise UnsupportedError(
        f"the server lists no name besides {target.sampler.model}",
        fix="to use adapters, start it with --enable-lora and load one",
    )


async def _users(target: _Target, *, count: int) -> tuple[CheckLine, Percentiles]:
    """So many users at the same time, each with a question of his own."""
    latencies: list[float] = []
    tokens = 0

    async def user(number: int) -> None:
        nonlocal tokens
        begun = time.perf_counter()
        question = f"I am user {number}. Tell me about the number {number}."
        prompt = target.prompt(question, f"User {number} says that the number {number}")
        response = await target.ask(prompt, max_tokens=_USERS_TOKENS)
        _answer(response)
        latencies.append(time.perf_counter() - begun)
        tokens += response.completion_tokens

    begun = time.perf_counter()
    asked = (user(number) for number in range(1, count + 1))
    results = await asyncio.gather(*asked, return_exceptions=True)
    seconds = time.perf_counter() - begun
    failures = [error for error in results if isinstance(error, BaseException)]
    for failure in failures:
        if not isinstance(failure, WireError):
            raise failure
    found = percentiles(latencies)
    name = "1 user" if count == 1 else f"{count:,} users"
    if failures and isinstance(failures[0], WireError):
        line = _failed(name, failures[0], begun=begun)
        says = f"{len(failures):,} of {count:,} were not answered: {line.says}"
        return msgspec.structs.replace(line, says=says), found
    says = f"all answered within {seconds:.2f} s: {_spread(found, latencies)}; "
    says += f"{tokens / seconds:,.0f} tokens/s"
    return CheckLine(name=name, outcome=Outcome.PASSED, says=says, seconds=seconds), found


def _spread(found: Percentiles, latencies: list[float]) -> str:
    named = (("p50", found.p50), ("p95", found.p95), ("p99", found.p99))
    shown = [f"{name} {value:.2f} s" for name, value in named if value is not None]
    return ", ".join([*shown, f"longest {max(latencies):.2f} s"])
