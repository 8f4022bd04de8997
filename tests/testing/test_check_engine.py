"""The conformance suite, on the fake engine and on samplers that break their promises."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from enginehouse.client.sampler import HTTPSampler
from enginehouse.client.wire import VLLM
from enginehouse.core.sampler import (
    Capabilities,
    Capability,
    Completion,
    Delta,
    SampleRequest,
    SampleResponse,
    Timing,
)
from enginehouse.testing.check_engine import CASES, check
from enginehouse.testing.fake_engine import running_fake_engine

SUPPORTS = frozenset(Capability) - {Capability.REGEX, Capability.GRAMMAR}
IGNORED = {"guided_json": "structured.json_schema"}


async def test_the_fake_engine_passes_every_case():
    """Nothing is skipped, either."""
    capabilities = Capabilities(supports=SUPPORTS, ignored=IGNORED)
    async with (
        running_fake_engine() as engine,
        HTTPSampler(engine.url, capabilities=capabilities, wire=VLLM) as sampler,
    ):
        results = await check(sampler)
    assert {r.name: r.detail for r in results if r.outcome != "passed"} == {}
    assert [result.name for result in results] == list(CASES)


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


@pytest.mark.parametrize("name", sorted(CASES))
async def test_every_case_can_fail(name: str):
    """A case that a careless engine passes would check nothing."""
    (result,) = await check(Careless(), only={name})
    if name in ("chat", "text", "greedy"):
        assert result.outcome == "passed", result.detail
    elif Capability.SEED in CASES[name].needs:
        assert result.outcome == "skipped"
    else:
        assert result.outcome == "failed"
        assert CASES[name].promise in result.detail
