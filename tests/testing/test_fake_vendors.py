"""The fakes of hosted APIs: our client's conformance on them, and the vendors' own types on both.

What we send validates as the SDK's request type, what a fake sends parses as the SDK's reply, and
what the SDK's reply is dumped to is what our dialects read.
"""

from __future__ import annotations

import json
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
import msgspec
import pytest
from anthropic.types import Message as AnthropicMessage
from anthropic.types import ModelInfo
from anthropic.types import RawMessageStreamEvent as AnthropicEvent
from anthropic.types.message_create_params import (
    MessageCreateParamsNonStreaming,
    MessageCreateParamsStreaming,
)
from openai.types import Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsNonStreaming,
    CompletionCreateParamsStreaming,
)
from pydantic import TypeAdapter
from tests.support.typed_parameters import problems

from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.messages import ChatPrompt, Message
from enginehouse.core.sampler import Capability, SampleRequest, SampleResponse, Timing
from enginehouse.core.sampling import SamplingParameters, StructuredOutput
from enginehouse.core.tool_calls import ToolCall, ToolDefinition
from enginehouse.engines.anthropic.engine import AnthropicEngine
from enginehouse.engines.base import RemoteEngine
from enginehouse.engines.megatron.engine import MegatronEngine
from enginehouse.engines.openai.engine import OpenAIEngine
from enginehouse.engines.openrouter.engine import OpenRouterEngine
from enginehouse.testing.check_engine import check
from enginehouse.testing.fake_vendors import (
    FakeAnthropic,
    FakeMegatron,
    FakeOpenAI,
    FakeOpenRouter,
    running_fake_vendor,
)
from enginehouse.testing.fake_vendors.vendor import FakeVendor
from enginehouse.tools.calling import call_tools
from enginehouse.tools.ladder import Ladder
from enginehouse.tools.results import Step
from enginehouse.tools.specification import ToolSpec

VENDORS: dict[str, tuple[type[Any], type[FakeVendor]]] = {
    "openai": (OpenAIEngine, FakeOpenAI),
    "openrouter": (OpenRouterEngine, FakeOpenRouter),
    "anthropic": (AnthropicEngine, FakeAnthropic),
    "megatron": (MegatronEngine, FakeMegatron),
}
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
VISIT = ToolDefinition(name="visit", description="Visit a city.", parameters=CITY)
HELLO = ChatPrompt((Message("system", "Be brief."), Message("user", "Hello!")))
CONVERSATION = ChatPrompt(
    (
        Message("system", "Be brief."),
        Message("user", "Visit both cities."),
        Message(
            "assistant",
            "",
            tool_calls=(
                ToolCall(id="a", name="visit", arguments='{"city": "Paris"}'),
                ToolCall(id="b", name="visit", arguments='{"city": "Rome"}'),
            ),
        ),
        Message("tool", "Sunny.", tool_call_id="a"),
        Message("tool", "Rainy.", tool_call_id="b"),
        Message("user", "So?"),
    )
)
# one of everything that a hosted API can be asked
ASKS = {
    "plain": SampleRequest(prompt=HELLO),
    "warm": SampleRequest(
        prompt=HELLO, parameters=SamplingParameters(temperature=0.7, top_p=0.9, stop=("x", "y"))
    ),
    "schema": SampleRequest(
        prompt=HELLO,
        parameters=SamplingParameters(structured=StructuredOutput(json_schema=CITY)),
    ),
    "conversation": SampleRequest(prompt=CONVERSATION, tools=(VISIT,)),
    "auto": SampleRequest(prompt=HELLO, tools=(VISIT,)),
    "required": SampleRequest(prompt=HELLO, tools=(VISIT,), tool_choice="required"),
    "none": SampleRequest(prompt=HELLO, tools=(VISIT,), tool_choice="none"),
    "named": SampleRequest(prompt=HELLO, tools=(VISIT,), tool_choice="visit"),
    "parallel": SampleRequest(prompt=ChatPrompt((Message("user", "Visit both!"),)), tools=(VISIT,)),
    "refused": SampleRequest(prompt=ChatPrompt((Message("user", "something forbidden"),))),
}
OPENAI_ASKS = ASKS | {
    "logprobs": SampleRequest(prompt=HELLO, parameters=SamplingParameters(logprobs=3)),
    "several": SampleRequest(prompt=HELLO, parameters=SamplingParameters(n=2, temperature=1)),
    "penalties": SampleRequest(
        prompt=HELLO, parameters=SamplingParameters(presence_penalty=0.1, frequency_penalty=0.2)
    ),
}
ANTHROPIC_ASKS = ASKS | {
    "top_k": SampleRequest(prompt=HELLO, parameters=SamplingParameters(temperature=1, top_k=5)),
    "thinking": SampleRequest(prompt=ChatPrompt((Message("user", "think first"),))),
}


def sampler_of(engine: RemoteEngine, vendor: FakeVendor) -> HTTPSampler:
    """Our client, as `eval --engine` would make it."""
    return HTTPSampler(
        vendor.url,
        model=vendor.models[0],
        capabilities=engine.capabilities(None),
        wire=engine.wire,
        api_key=vendor.key,
    )


@pytest.mark.parametrize("name", VENDORS)
async def test_every_vendor_passes_the_conformance_suite(name: str):
    """Every case of its declared capabilities; a server that takes no names knows no unknown."""
    engine, fake = VENDORS[name][0](), VENDORS[name][1]()
    nameless = {"unknown_model": "takes no model's name"} if name == "megatron" else {}
    async with running_fake_vendor(fake) as vendor, sampler_of(engine, vendor) as sampler:
        results = await check(sampler, inapplicable=nameless)
    assert {r.name: r.detail for r in results if r.outcome == "failed"} == {}
    passed = {r.name for r in results if r.outcome == "passed"}
    assert {"stop", "greedy", "max_tokens", "context_overflow", "undeclared_refused"} <= passed


def encoded(engine: RemoteEngine, request: SampleRequest, *, stream: bool = False) -> Any:
    """The body that we would send."""
    dialect = engine.wire.chat
    assert dialect is not None
    capabilities = engine.capabilities(None)
    return json.loads(dialect.encode(request, model="m", capabilities=capabilities, stream=stream))


@pytest.mark.parametrize("name", OPENAI_ASKS)
def test_what_we_send_openai_is_what_its_sdk_would(name: str):
    """Tools, choices, results, schemas and all."""
    assert (
        problems(encoded(OpenAIEngine(), OPENAI_ASKS[name]), CompletionCreateParamsNonStreaming)
        == []
    )


@pytest.mark.parametrize("name", ANTHROPIC_ASKS)
def test_what_we_send_anthropic_is_what_its_sdk_would(name: str):
    """Tools, choices, results, schemas and all."""
    assert (
        problems(encoded(AnthropicEngine(), ANTHROPIC_ASKS[name]), MessageCreateParamsNonStreaming)
        == []
    )


def test_streams_are_asked_for_as_the_sdks_do():
    """With the field that both vendors have."""
    assert (
        problems(
            encoded(OpenAIEngine(), ASKS["warm"], stream=True), CompletionCreateParamsStreaming
        )
        == []
    )
    assert (
        problems(
            encoded(AnthropicEngine(), ASKS["warm"], stream=True), MessageCreateParamsStreaming
        )
        == []
    )


async def post(vendor: FakeVendor, path: str, body: Any) -> bytes:
    """What the fake answers, unread by us."""
    headers = {
        "Authorization": f"Bearer {vendor.key}",
        "x-api-key": vendor.key,
        "anthropic-version": "2023-06-01",
    }
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(vendor.url + path, json=body | {"model": vendor.models[0]}) as reply,
    ):
        assert reply.status == 200, await reply.text()
        return await reply.read()


def decoded(engine: RemoteEngine, body: bytes, request: SampleRequest) -> SampleResponse:
    """What we read in a reply."""
    dialect = engine.wire.chat
    assert dialect is not None
    return dialect.decode(body, request=request, timing=Timing(started=0, elapsed=0))


@pytest.mark.parametrize("name", OPENAI_ASKS)
async def test_a_reply_of_openai_s_fake_is_one_of_its_sdk_and_ours(name: str):
    """And so is what the SDK makes of it."""
    engine, request = OpenAIEngine(), OPENAI_ASKS[name]
    async with running_fake_vendor(FakeOpenAI()) as vendor:
        body = await post(vendor, "/v1/chat/completions", encoded(engine, request))
    parsed = ChatCompletion.model_validate_json(body, strict=True)
    ours = decoded(engine, body, request)
    assert decoded(engine, parsed.model_dump_json().encode(), request) == ours
    message = parsed.choices[0].message
    assert ours.completions[0].text == (message.content or message.refusal or "")
    calls = [(call.id, call.function.name) for call in message.tool_calls or ()]  # type: ignore[union-attr]
    assert [(call.id, call.name) for call in ours.completions[0].tool_calls] == calls
    assert len(calls) == {"auto": 1, "required": 1, "named": 1, "parallel": 2}.get(name, 0) or (
        name == "conversation" and len(calls) == 1
    )


def _normal(response: SampleResponse) -> SampleResponse:
    """The same, however the JSON of the calls' arguments is spaced."""
    (completion,) = response.completions
    calls = tuple(
        msgspec.structs.replace(call, arguments=json.dumps(json.loads(call.arguments)))
        for call in completion.tool_calls
    )
    completion = msgspec.structs.replace(completion, tool_calls=calls)
    return msgspec.structs.replace(response, completions=(completion,))


@pytest.mark.parametrize("name", ANTHROPIC_ASKS)
async def test_a_reply_of_anthropic_s_fake_is_one_of_its_sdk_and_ours(name: str):
    """And so is what the SDK makes of it."""
    engine, request = AnthropicEngine(), ANTHROPIC_ASKS[name]
    async with running_fake_vendor(FakeAnthropic()) as vendor:
        body = await post(vendor, "/v1/messages", encoded(engine, request))
    parsed = AnthropicMessage.model_validate_json(body, strict=True)
    ours = decoded(engine, body, request)
    assert _normal(decoded(engine, parsed.model_dump_json().encode(), request)) == _normal(ours)
    reasons = {"refused": "refusal", "plain": "stop", "parallel": "tool_calls"}
    assert ours.completions[0].finish_reason == reasons.get(name, ours.completions[0].finish_reason)
    assert (ours.completions[0].reasoning is not None) == (name == "thinking")
    calls = [block.id for block in parsed.content if block.type == "tool_use"]
    assert [call.id for call in ours.completions[0].tool_calls] == calls
    assert len(calls) == 2 or name != "parallel"


def _events(body: bytes) -> list[bytes]:
    lines = body.split(b"\n")
    return [line.removeprefix(b"data: ") for line in lines if line.startswith(b"data: ")]


async def test_a_stream_of_openai_s_fake_parses_with_its_sdk():
    """Chunk by chunk, up to the end that is none."""
    async with running_fake_vendor(FakeOpenAI()) as vendor:
        sent = encoded(OpenAIEngine(), ASKS["plain"], stream=True)
        *chunks, end = _events(await post(vendor, "/v1/chat/completions", sent))
    assert end == b"[DONE]"
    parsed = [ChatCompletionChunk.model_validate_json(chunk, strict=True) for chunk in chunks]
    assert parsed[-1].choices[0].finish_reason == "stop"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "thinking", "parallel", "refused"])
async def test_a_stream_of_anthropic_s_fake_parses_with_its_sdk(name: str):
    """Every event, thinking and the pieces of a tool's input among them."""
    async with running_fake_vendor(FakeAnthropic()) as vendor:
        body = encoded(AnthropicEngine(), ANTHROPIC_ASKS[name]) | {"stream": True}
        events = _events(await post(vendor, "/v1/messages", body))
    # the SDK's own union lacks the ping, which it skips by the event's name
    real = [event for event in events if json.loads(event)["type"] != "ping"]
    kinds = [TypeAdapter(AnthropicEvent).validate_json(event).type for event in real]
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
    assert len(events) == len(real) + 1
    for event in events:  # the tools' pieces, too, are events that we can pass over
        assert AnthropicEngine.wire.chat is not None
        AnthropicEngine.wire.chat.decode_chunk(event)


async def test_the_lists_of_models_parse_with_the_sdks():
    """Every entry."""
    async with running_fake_vendor(FakeOpenAI()) as vendor:
        assert [Model.model_validate(m).id for m in vendor.model_list()["data"]] == ["fake-model"]
    async with running_fake_vendor(FakeAnthropic()) as vendor:
        models = [TypeAdapter(ModelInfo).validate_python(m) for m in vendor.model_list()["data"]]
        assert [model.id for model in models] == ["fake-model"]


@pytest.mark.parametrize("name", ["openai", "openrouter", "anthropic"])
async def test_tools_go_round(name: str):
    """Calls come back as they were made, and their results are taken."""
    engine, fake = VENDORS[name][0](), VENDORS[name][1]()
    running: AbstractAsyncContextManager[FakeVendor] = running_fake_vendor(fake)
    async with running as vendor, sampler_of(engine, vendor) as sampler:
        first = (await sampler.sample(ASKS["parallel"])).completions[0]
        assert [json.loads(call.arguments).keys() for call in first.tool_calls] == [{"city"}] * 2
        assert first.finish_reason == "tool_calls"
        results = [Message("tool", "Sunny.", tool_call_id=call.id) for call in first.tool_calls]
        turns = (
            Message("user", "Visit both!"),
            Message("assistant", first.text, tool_calls=first.tool_calls),
            *results,
        )
        last = await sampler.sample(SampleRequest(prompt=ChatPrompt(turns), tools=(VISIT,)))
    assert last.completions[0].text
    assert not last.completions[0].tool_calls


@pytest.mark.parametrize("name", ["openai", "openrouter", "anthropic"])
async def test_a_schema_that_the_vendor_cannot_take_makes_way_for_the_next_step(name: str):
    """A bounded integer, an optional property: the prompted step needs no schema of theirs."""
    engine, fake = VENDORS[name][0](), VENDORS[name][1]()
    tool = ToolSpec(
        name="wait",
        description="Wait for hours.",
        parameters={
            "type": "object",
            "properties": {"hours": {"type": "integer", "minimum": 1}, "why": {"type": "string"}},
            "required": ["hours"],
        },
    )
    running: AbstractAsyncContextManager[FakeVendor] = running_fake_vendor(fake)
    async with running as vendor, sampler_of(engine, vendor) as sampler:
        result = await call_tools(
            sampler,
            [Message("user", "Say nothing.")],
            [tool],
            choice="required",
            ladder=Ladder((Step.CONSTRAINED, Step.PROMPTED)),
        )
    assert result.attempts[0].step is Step.CONSTRAINED
    assert "schema" in result.attempts[0].why.lower()
    assert {attempt.step for attempt in result.attempts[1:]} == {Step.PROMPTED}


def test_nothing_is_declared_that_the_vendors_do_not_promise():
    """Seeds above all: an evaluation says then that its samples cannot be drawn again."""
    for name in ("openai", "openrouter", "anthropic"):
        supports = VENDORS[name][0]().capabilities(None).supports
        assert Capability.SEED not in supports
        assert Capability.CHAT in supports
