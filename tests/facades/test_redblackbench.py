"""RedBlackBench's providers against a fake engine and servers that speak the vendors' formats."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from enginehouse.client.retry import Retries
from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.errors import (
    ConfigurationError,
    ConnectionFailedError,
    UnknownModelError,
    UnknownNameError,
)
from enginehouse.engines.vllm.engine import VllmEngine
from enginehouse.facades.redblackbench import (
    BaseLLMProvider,
    OpenAIProvider,
    ProviderConfig,
    VLLMProvider,
    create_provider,
)
from enginehouse.facades.redblackbench import providers as redblackbench_providers
from enginehouse.testing.fake_engine import FakeEngineHandle, running_fake_engine

from .conftest import SERVED
from .snippets import REDBLACKBENCH, ported

ASK = [{"role": "user", "content": "What should I do?"}]


def test_defaults_are_those_of_the_original_table() -> None:
    """An experiment's YAML that leaves an option out means the same as before."""
    provider = VLLMProvider("m")
    assert provider.base_url == "http://localhost:8000"
    assert provider.config == ProviderConfig(
        model="m",
        temperature=0.7,
        max_tokens=1024,
        api_key="EMPTY",
        base_url="http://localhost:8000/v1",
    )
    assert provider.provider_name == "vllm"
    assert repr(provider) == "VLLMProvider(model=m)"


def test_the_base_is_abstract_and_is_all_that_a_provider_of_ones_own_needs() -> None:
    """Subclasses need `generate` and nothing else."""
    with pytest.raises(TypeError):
        BaseLLMProvider(ProviderConfig("m"))  # type: ignore[abstract]

    class EchoProvider(BaseLLMProvider):
        async def generate(self, system_prompt: str, messages: Sequence[Mapping[str, Any]]) -> str:
            return system_prompt + messages[-1]["content"]

    provider = EchoProvider(ProviderConfig("m"))
    assert provider.provider_name == "echo"
    assert asyncio.run(provider.generate("a", [{"role": "user", "content": "b"}])) == "ab"


@pytest.mark.slow
async def test_the_document_s_example_runs_and_says_nothing_besides() -> None:
    """A whole script, its client never closed: an answer, no warning about what it left open."""
    async with running_fake_engine(
        model="/workspace/models/Qwen3-14B", answers={"What should I do": "BLACK."}
    ) as engine:
        script = ported(REDBLACKBENCH, url=engine.url)
        for ending in ("", "; del provider"):
            spelling = script.replace("print(response)", "print(response)" + ending)
            done = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-X", "dev", "-W", "error", "-c", spelling],
                capture_output=True,
                text=True,
                check=False,
            )
            # -X dev also says when a busy machine made a step slow
            said = [line for line in done.stderr.splitlines() if not line.startswith("Executing <")]
            assert (done.returncode, done.stdout, said) == (0, "BLACK.\n", [])


def test_one_provider_serves_several_event_loops(engine_url: str) -> None:
    """Run after run, and several at once in threads: a pool belongs to one loop only."""
    provider = VLLMProvider("m", base_url=engine_url)

    async def ask() -> str:
        return "".join(await asyncio.gather(*(provider.generate("", ASK) for _ in range(3))))

    assert asyncio.run(ask()) == asyncio.run(ask()) == "BLACK." * 3

    async def in_threads() -> list[str]:
        return await asyncio.gather(*(asyncio.to_thread(asyncio.run, ask()) for _ in range(3)))

    assert asyncio.run(in_threads()) == ["BLACK." * 3] * 3


@pytest.fixture
def engine_url(tmp_path: Any) -> Any:
    """The address of a fake engine that outlives any event loop."""
    loop = asyncio.new_event_loop()
    running = running_fake_engine(model="m", answers={"What": "BLACK."})
    try:
        yield loop.run_until_complete(running.__aenter__()).url + "/v1"
    finally:
        loop.run_until_complete(running.__aexit__(None, None, None))
        loop.close()


async def test_many_providers_of_one_server_share_one_pool(engine: FakeEngineHandle) -> None:
    """An agent has a provider of its own; the connections are the team's, until the last goes."""
    providers = [VLLMProvider(SERVED, base_url=engine.url) for _ in range(5)]
    await asyncio.gather(*(p.generate("Be brief.", ASK) for p in providers))
    pools = redblackbench_providers._pools[asyncio.get_running_loop()]
    assert len(pools) == 1
    for provider in providers[:4]:
        await provider.aclose()
    assert len(pools) == 1
    assert await providers[4].generate("", ASK)
    await providers[4].aclose()
    assert pools == {}
    async with providers[0] as again:  # a closed one may be asked again
        assert await again.generate("", ASK)
    assert pools == {}


async def test_adapters_are_asked_for_by_name(tmp_path: Path) -> None:
    """`model` may name a LoRA adapter that the server has beside its model."""
    async with running_fake_engine("--enable-lora", model="base") as engine:
        vllm = VllmEngine()
        sampler = HTTPSampler(
            engine.url, model="base", capabilities=vllm.capabilities(None), wire=vllm.wire
        )
        (tmp_path / "adapter_config.json").write_text("{}")
        async with sampler:
            await sampler.load_adapter("qwen3-14b-v2", path=str(tmp_path))
        async with VLLMProvider("qwen3-14b-v2", base_url=engine.url) as provider:
            assert await provider.generate("", ASK)
        async with VLLMProvider("qwen3-14b-v3", base_url=engine.url) as provider:
            with pytest.raises(UnknownModelError):
                await provider.generate("", ASK)


async def test_temperature_and_length_go_to_the_server() -> None:
    """Both were ignored by the original for some providers: here they decide the answer."""
    async with (
        running_fake_engine(model="m", answers={"What": "one two three four"}) as engine,
        VLLMProvider("m", base_url=engine.url, max_tokens=2) as provider,
    ):
        assert len((await provider.generate("", ASK)).split()) < 4


async def test_a_server_that_is_not_there_is_an_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No answer is made up."""
    once = partial(HTTPSampler, retries=Retries(attempts=1))
    monkeypatch.setattr(redblackbench_providers, "HTTPSampler", once)
    provider = VLLMProvider("m", base_url="http://127.0.0.1:9/v1")
    async with provider:
        with pytest.raises(ConnectionFailedError, match=r"127\.0\.0\.1:9"):
            await provider.generate("", ASK)


async def test_a_key_that_is_none_is_the_same_error_every_time() -> None:
    """The second question fails in words, too."""
    provider = OpenAIProvider("m", api_key="sk-abc\n")
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="white space"):
            await provider.generate("", ASK)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "player", "content": "x"}, "role"),
        ({"role": "user"}, "content"),
        ({"role": "user", "content": None}, "content"),
    ],
)
async def test_what_is_no_message_is_refused(message: dict[str, Any], says: str) -> None:
    """Before anything is sent, naming what is wrong with it."""
    with pytest.raises(ConfigurationError, match=says):
        await VLLMProvider("m").generate("", [message])


def test_a_provider_block_of_an_experiment_is_taken_as_it_is() -> None:
    """`type`, `model` and options as in the YAML; what is unknown is refused with a suggestion."""
    block = {"type": "vllm", "model": "qwen3-14b-v2", "base_url": "http://h:1/v1", "temperature": 0}
    provider = create_provider(block)
    assert isinstance(provider, VLLMProvider)
    assert (provider.config.temperature, provider.base_url) == (0, "http://h:1")
    with pytest.raises(UnknownNameError, match="vlm") as unknown:
        create_provider(block | {"type": "vlm"})
    assert "did you mean 'vllm'" in (unknown.value.fix or "")
    with pytest.raises(UnknownNameError, match="max_token"):
        create_provider(block | {"max_token": 4})
    with pytest.raises(ConfigurationError, match="'type'"):
        create_provider({"model": "m"})
    with pytest.raises(ConfigurationError, match="'model'"):
        create_provider({"type": "vllm"})


def test_a_hosted_provider_without_a_key_is_refused_before_anything_is_sent() -> None:
    """The variable to set is named."""
    with pytest.raises(ConfigurationError) as refused:
        OpenAIProvider("gpt-4")
    assert "OPENAI_API_KEY" in (refused.value.fix or "")


def test_keys_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a provider nor its configuration shows the key in its repr."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    for provider in (OpenAIProvider("gpt-4"), OpenAIProvider("gpt-4", api_key="sk-very-secret")):
        assert "secret" not in repr(provider) + repr(provider.config)
