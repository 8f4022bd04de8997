"""A real llama-server on SmolLM2's GGUF file, built or found as a user's would be."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from enginehouse.core.errors import ContextOverflowError, StartError
from enginehouse.core.messages import ChatPrompt, Message, TextPrompt
from enginehouse.core.sampler import SampleRequest
from enginehouse.core.sampling import SamplingParameters, StructuredOutput
from enginehouse.deployment.base import Deployment
from enginehouse.deployment.opening import serve
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.testing.check_engine import check

pytestmark = [
    pytest.mark.engine,
    pytest.mark.usefixtures("llamacpp_environment"),
    pytest.mark.asyncio(loop_scope="module"),
]
CONTEXT = 512


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def serving(llamacpp_environment: EngineEnvironment) -> AsyncIterator[Deployment]:
    """SmolLM2, with a short context and four sequences at once."""
    del llamacpp_environment  # compiled before the server's start is waited for
    async with serve(
        "smollm2", engine="llamacpp", notify=print, max_model_len=CONTEXT, max_num_seqs=4
    ) as ready:
        yield ready


async def test_conformance(serving: Deployment):
    """It does everything that it declares, and refuses the rest before it is sent."""
    results = await check(serving.sampler)
    assert [r for r in results if r.outcome == "failed"] == []
    skipped = {r.name for r in results if r.outcome == "skipped"}
    lacking = {"n", "adapter", "tool_call", "prompt_logprobs", "logprobs_agree"}
    assert skipped == lacking | {"token_ids", "tokenize_round_trip", "structured_regex"}


async def test_an_answer_that_outgrows_the_context_is_an_overflow(serving: Deployment):
    """The server cuts it off and says "length", as if max_tokens had."""
    request = SampleRequest(
        prompt=TextPrompt("again " * (CONTEXT - 20)),
        parameters=SamplingParameters(max_tokens=100, ignore_eos=True),
    )
    with pytest.raises(ContextOverflowError, match="full"):
        await serving.sampler.sample(request)


async def test_choices_survive_every_character(serving: Deployment):
    """Whatever a text holds, the grammar is for exactly it."""
    for choice in ('say "hi"\\n', "two\nlines\tand é", "\x07 bell", "]|[()*+?.^$"):
        request = SampleRequest(
            prompt=ChatPrompt((Message("user", "Say it."),)),
            parameters=SamplingParameters(
                max_tokens=64, structured=StructuredOutput(choice=(choice,))
            ),
        )
        response = await serving.sampler.sample(request)
        assert response.completions[0].text == choice


async def test_more_requests_than_sequences_are_all_answered(serving: Deployment):
    """They wait their turn, and the load signal counts those that do."""
    request = SampleRequest(
        prompt=TextPrompt("Once upon a time"),
        parameters=SamplingParameters(max_tokens=48, ignore_eos=True, temperature=1.0),
    )
    asked = [asyncio.create_task(serving.sampler.sample(request)) for _ in range(16)]
    seen = 0
    while not all(task.done() for task in asked):
        load = await serving.sampler.load()
        assert load is not None
        seen = max(seen, load.running)
    responses = await asyncio.gather(*asked)
    assert [response.completion_tokens for response in responses] == [48] * 16
    assert 1 <= seen <= 4


def write_adapter(file: Path, *, hidden: int = 576, rank: int = 4) -> Path:
    """A LoRA of SmolLM2's first query projection that turns its output upside down."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    keys = [
        text("general.type") + struct.pack("<I", 8) + text("adapter"),
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("adapter.type") + struct.pack("<I", 8) + text("lora"),
        text("adapter.lora.alpha") + struct.pack("<If", 6, 4.0),
    ]
    random = np.random.default_rng(0)
    shapes = {"lora_a": (rank, hidden), "lora_b": (hidden, rank)}
    infos, data = b"", b""
    for name, (rows, columns) in shapes.items():
        infos += text(f"blk.0.attn_q.weight.{name}")
        infos += struct.pack("<IQQIQ", 2, columns, rows, 0, len(data))
        data += random.normal(size=(rows, columns)).astype("<f4").tobytes()
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(keys)) + b"".join(keys) + infos
    file.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return file


async def test_a_request_weighs_the_adapters_of_the_start(tmp_path: Path):
    """Scale 0 is the base model, and anything else is not."""
    adapter = write_adapter(tmp_path / "adapter.gguf")

    def ask(scale: float) -> SampleRequest:
        lora = [{"id": 0, "scale": scale}]
        parameters = SamplingParameters(max_tokens=12, ignore_eos=True, extra={"lora": lora})
        return SampleRequest(prompt=TextPrompt("Once upon a time"), parameters=parameters)

    async with serve(
        "smollm2", engine="llamacpp", max_model_len=CONTEXT, extra_args=["--lora", str(adapter)]
    ) as ready:
        base, changed, again = [await ready.sampler.sample(ask(scale)) for scale in (0, 1, 0)]
    assert base.completions[0].text == again.completions[0].text
    assert base.completions[0].text != changed.completions[0].text


async def test_a_failed_start_is_diagnosed():
    """Its own words, the cause, and what to do next."""
    with pytest.raises(StartError) as error:
        async with serve("smollm2", engine="llamacpp", extra_args="--cache-type-k q9"):
            pass
    assert error.value.kind == "wrong_value"
    assert "q9" in str(error.value)
