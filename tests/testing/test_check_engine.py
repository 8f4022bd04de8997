"""The conformance suite, on the fake engine and on samplers that break their promises."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from aiohttp import test_utils, web

from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.sampler import (
    Capabilities,
    Capability,
    Completion,
    Delta,
    SampleRequest,
    SampleResponse,
    Timing,
)
from enginehouse.engines.base import Engine
from enginehouse.engines.registry import ENGINES
from enginehouse.engines.vllm.wire import VLLM
from enginehouse.testing.check_engine import CASES, check
from enginehouse.testing.fake_engine import running_fake_engine

IGNORED = {"guided_json": "structured.json_schema"}


@pytest.mark.slow
async def test_the_fake_engine_passes_every_case(tmp_path: Path):
    """Nothing is skipped, either."""
    capabilities = Capabilities(supports=frozenset(Capability), ignored=IGNORED)
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    async with (
        running_fake_engine(
            "--enable-lora", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"
        ) as engine,
        HTTPSampler(engine.url, capabilities=capabilities, wire=VLLM) as sampler,
    ):
        await sampler.load_adapter("mine", path=str(tmp_path))
        results = await check(sampler, adapter="mine")
    assert {r.name: r.detail for r in results if r.outcome != "passed"} == {}
    assert [result.name for result in results] == list(CASES)


def test_every_capability_has_a_case():
    """What no case needs, an engine could declare and not do."""
    assert frozenset().union(*(case.needs for case in CASES.values())) == frozenset(Capability)


async def test_a_strict_openai_server_is_asked_only_what_it_declares():
    """Cases that need more are skipped and say what is lacking; the rest pass."""
    capabilities = Capabilities(supports=frozenset({Capability.CHAT, Capability.STREAM}))
    async with (
        running_fake_engine() as engine,
        HTTPSampler(engine.url, capabilities=capabilities) as sampler,
    ):
        results = {result.name: result for result in await check(sampler)}
    assert not [r for r in results.values() if r.outcome == "failed"]
    assert results["structured_choice"].outcome == "skipped"
    assert "choice" in results["structured_choice"].detail
    assert results["undeclared_refused"].outcome == "passed"
    assert results["stream_chat"].outcome == "passed"


async def test_an_engine_without_chat_is_asked_in_its_own_way():
    """Cases that are about something else use the prompts that there are."""
    capabilities = Capabilities(supports=frozenset({Capability.TEXT, Capability.SEED}))
    async with (
        running_fake_engine() as engine,
        HTTPSampler(engine.url, capabilities=capabilities) as sampler,
    ):
        results = {result.name: result for result in await check(sampler)}
    assert {r.name: r.detail for r in results.values() if r.outcome == "failed"} == {}
    for name in ("stop", "seed", "greedy", "max_tokens", "unknown_model", "context_overflow"):
        assert results[name].outcome == "passed"


async def test_skips_say_why():
    """A capability that lacks, an adapter that nobody named, or the caller's reason."""
    reason = "the protocol names no model"
    everything = Capabilities(supports=frozenset(Capability))
    async with (
        running_fake_engine() as engine,
        HTTPSampler(engine.url, capabilities=everything, wire=VLLM) as sampler,
    ):
        only = {"unknown_model", "adapter"}
        unknown, adapter = sorted(
            await check(sampler, only=only, inapplicable={"unknown_model": reason}),
            key=lambda result: result.name,
            reverse=True,
        )
    assert (unknown.outcome, unknown.detail) == ("skipped", reason)
    assert (adapter.outcome, adapter.detail) == ("skipped", "no adapter was named")


class Recorder:
    """A server that notes every request and answers none."""

    def __init__(self) -> None:
        self.requests: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        """Note it."""
        self.requests.append(request.path)
        return web.Response(status=500)


@pytest.mark.parametrize("name", ENGINES.names())
async def test_every_engine_refuses_what_it_does_not_declare(name: str):
    """Before anything is sent: also by the fields that it would silently ignore."""
    engine: Engine = ENGINES.load(name)()
    recorder = Recorder()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", recorder.answer)
    async with (
        test_utils.TestServer(app) as server,
        HTTPSampler(
            str(server.make_url("")),
            model="some-model",
            capabilities=engine.capabilities(None),
            wire=engine.wire,
            concurrency=1,
        ) as sampler,
    ):
        only = {"undeclared_refused", "ignored_fields_refused"}
        results = await check(sampler, only=only)
    assert {r.name: r.detail for r in results if r.outcome != "passed"} == {}
    assert recorder.requests == []


class Careless:
    """Answers everything with the same words, whatever was asked."""

    capabilities = Capabilities(supports=frozenset(Capability) - {Capability.SEED}, ignored=IGNORED)

    async def sample(self, request: SampleRequest) -> SampleResponse:
        """One answer, always."""
        return SampleResponse(
            completions=(Completion(text="Paris, of course.", finish_reason="stop"),),
            model="m",
            request_id="1",
            prompt_tokens=1,
            completion_tokens=5,
            timing=Timing(started=0, elapsed=0),
        )

    async def stream(self, request: SampleRequest) -> AsyncIterator[Delta]:
        """Something else."""
        yield Delta(text="Rome.", finish_reason="stop")

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Three ids."""
        return (1, 2, 3)


class Restless(Careless):
    """Answers with other words each time unless it is greedy, whatever else was asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def sample(self, request: SampleRequest) -> SampleResponse:
        """Words with a number."""
        response = await super().sample(request)
        self.asked += 1
        text = f"Paris {self.asked if request.parameters.temperature else ''}"
        changed = msgspec.structs.replace(response.completions[0], text=text)
        return msgspec.structs.replace(response, completions=(changed,))


@pytest.mark.parametrize("name", sorted(CASES))
async def test_every_case_can_fail(name: str):
    """A case that a careless engine passes would check nothing."""
    sampler = Restless() if name in ("top_k", "min_p") else Careless()
    (result,) = await check(sampler, only={name}, adapter="mine")
    if name in ("chat", "text", "greedy"):
        assert result.outcome == "passed", result.detail
    elif Capability.SEED in CASES[name].needs:
        assert result.outcome == "skipped"
    else:
        assert result.outcome == "failed"
        assert CASES[name].promise in result.detail
