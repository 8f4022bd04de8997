"""Agent Arena's backends against a fake engine, and serving one for themselves."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from tests.support.command_line import House, until

from enginehouse.client.retry import Retries
from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.errors import ConfigurationError, ModelNotFoundError
from enginehouse.core.sampler import (
    Capabilities,
    Capability,
    Completion,
    SampleRequest,
    SampleResponse,
    Timing,
)
from enginehouse.core.tool_calls import ToolCall
from enginehouse.deployment.configuration import ServeConfig
from enginehouse.facades.agent_arena import (
    BackendConfig,
    HFBackendConfig,
    LlamaCppBackend,
    LlamaCppBackendConfig,
    VLLMBackend,
    VLLMBackendConfig,
    backends,
)
from enginehouse.testing.fake_engine import running_fake_engine

from .conftest import SERVED
from .snippets import AGENT_ARENA, AGENT_ARENA_WEATHER, ported

ANSWERS = {"Hello, my name is": " Arthur.", "Say hi": "hi there"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of a fake engine that outlives any event loop."""
    loop = asyncio.new_event_loop()
    running = running_fake_engine(model=SERVED, answers=ANSWERS)
    try:
        yield loop.run_until_complete(running.__aenter__()).url + "/v1"
    finally:
        loop.run_until_complete(running.__aexit__(None, None, None))
        loop.close()


@pytest.fixture
def backend(url: str) -> Iterator[VLLMBackend]:
    """A backend of the fake engine."""
    with VLLMBackend(VLLMBackendConfig(SERVED, api_base=url)) as made:
        yield made


def asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make what fails fail at once."""
    monkeypatch.setattr(
        backends, "HTTPSampler", lambda *a, **k: HTTPSampler(*a, **{"retries": ONCE} | k)
    )


ONCE = Retries(attempts=1)


def test_the_configuration_s_defaults_are_those_of_the_original() -> None:
    """What was left out before means the same now."""
    config = VLLMBackendConfig(model_path="m")
    assert {f.name: getattr(config, f.name) for f in fields(config)} == {
        "model_path": "m",
        "temperature": 0.7,
        "max_tokens": 512,
        "top_p": 0.9,
        "top_k": 40,
        "n_gpu_layers": 0,
        "function_calling": True,
        "api_base": "http://localhost:8000/v1",
        "api_key": "EMPTY",
    }
    assert "EMPTY" not in repr(config)
    with pytest.raises(FrozenInstanceError):
        config.temperature = 0.1  # type: ignore[misc]


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_p": 0}, {"max_tokens": 0}, {"n_gpu_layers": 4}]
)
def test_wrong_values_are_refused_when_the_configuration_is_made(wrong: dict[str, Any]) -> None:
    """Not at the hundredth request; and layers on the GPU are nothing that vLLM would heed."""
    with pytest.raises(ConfigurationError):
        VLLMBackendConfig("m", **wrong)


def test_it_answers(backend: VLLMBackend) -> None:
    """A prompt is continued as it is; with a system prompt it is a conversation."""
    result = backend.generate("Hello, my name is")
    assert (result.text, result.finish_reason) == (" Arthur.", "stop")
    assert result.tokens_used > 4
    assert result.metadata["model"] == SERVED
    assert result.metadata["api_base"] == backend.config.api_base
    result = backend.generate("Say hi", temperature=0.0, max_tokens=1, system_prompt="Be brief.")
    assert (result.text.strip(), result.finish_reason) == ("hi", "length")


def test_it_is_available_while_the_server_answers(backend: VLLMBackend) -> None:
    """It may be made before its server runs, and is not available then."""
    assert backend.is_available()
    with VLLMBackend(VLLMBackendConfig("m", api_base="http://127.0.0.1:9/v1")) as early:
        assert not early.is_available()


def test_it_is_unloaded_for_good(url: str) -> None:
    """Twice is once; then there is nothing to ask, in words."""
    backend = VLLMBackend(VLLMBackendConfig(SERVED, api_base=url))
    backend.unload()
    backend.unload()
    assert not backend.is_available()
    with pytest.raises(RuntimeError, match="unloaded"):
        backend.generate("Hello")


def test_it_works_inside_a_running_loop_and_from_many_threads(backend: VLLMBackend) -> None:
    """In a notebook, in a service's request handlers, in an agent's worker threads."""

    async def handler() -> str:
        return backend.generate("Hello, my name is").text

    assert asyncio.run(handler()) == " Arthur."
    texts: list[str] = []
    threads = [
        threading.Thread(target=lambda: texts.append(backend.generate("Say hi").text))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert texts == ["hi there"] * 16


def test_a_request_that_fails_is_a_result_that_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    """As the original's agents expect; and the log has it, so that nobody reads silence."""
    asked_once(monkeypatch)
    with VLLMBackend(VLLMBackendConfig("m", api_base="http://127.0.0.1:9/v1")) as backend:
        result = backend.generate("Hello")
    assert (result.text, result.tokens_used, result.finish_reason) == ("", 0, "error")
    assert "no reply from http://127.0.0.1:9" in result.metadata["error"]
    assert result.metadata["error_type"] == "ConnectionFailedError"
    assert "no reply from" in caplog.text
    with VLLMBackend(VLLMBackendConfig("another", api_base=url)) as backend:
        assert backend.generate("Hello").metadata["error_type"] == "UnknownModelError"
    with (
        VLLMBackend(VLLMBackendConfig(SERVED, api_base=url)) as backend,
        pytest.raises(ConfigurationError, match="temperature"),
    ):
        backend.generate("Hello", temperature=-1)


def test_a_lost_connection_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """With tools, too, it is the one error, told once; the server is not asked in another way."""
    asked_once(monkeypatch)
    with VLLMBackend(VLLMBackendConfig("m", api_base="http://127.0.0.1:9/v1")) as backend:
        result = backend.generate_with_tools("Move", [MOVE])
    assert result.finish_reason == "error"
    assert result.metadata["error_type"] == "ConnectionFailedError"
    assert not {"tool_call", "step"} & set(result.metadata)


MOVE = {
    "name": "move_to",
    "description": "Move agent to coordinates",
    "parameters": {
        "type": "object",
        "properties": {"target": {"type": "array", "items": {"type": "number"}}},
        "required": ["target"],
    },
}


class Scripted:
    """A sampler in the fake's place whose answers a test writes; the first is the native one."""

    capabilities = Capabilities(supports=frozenset({Capability.CHAT, Capability.TOOLS}))
    model = SERVED

    def __init__(self, *completions: Completion) -> None:
        self.completions = list(completions)
        self.requests: list[SampleRequest] = []

    async def sample(self, request: SampleRequest) -> SampleResponse:
        """The next answer; the last one again and again."""
        self.requests.append(request)
        return SampleResponse(
            completions=(self.completions[min(len(self.requests), len(self.completions)) - 1],),
            model=SERVED,
            request_id="1",
            prompt_tokens=10,
            completion_tokens=5,
            timing=Timing(started=0.0, elapsed=0.1),
        )


WRITTEN = '{"name": "move_to", "arguments": {"target": [10, 20, 5]}}'


def answer(text: str = "", *, call: str | None = None) -> Completion:
    """A completion with this text, or with a native call of move_to."""
    calls = (ToolCall(id="1", name="move_to", arguments=call),) if call else ()
    return Completion(text=text, finish_reason="stop", tool_calls=calls)


@pytest.mark.parametrize(
    ("answers", "step"),
    [
        ([answer("Off we go.", call='{"target": [10, 20, 5]}')], "native"),
        (
            [
                answer(call='{"target": "there"}'),
                answer(f"<tool_call>{WRITTEN}</tool_call>"),
            ],
            "prompted",
        ),
    ],
)
def test_a_call_is_in_the_same_place_whatever_step_made_it(
    url: str, monkeypatch: pytest.MonkeyPatch, answers: list[Completion], step: str
) -> None:
    """`metadata["tool_call"]`, valid, on both paths; and as Agent Arena's agents still read it."""
    sampler = Scripted(*answers)
    with VLLMBackend(VLLMBackendConfig(SERVED, api_base=url)) as backend:
        monkeypatch.setattr(
            backend.client,
            "call",
            lambda work: asyncio.run(work(backends._Line(sampler, None, None))),  # type: ignore[arg-type]
        )
        result = backend.generate_with_tools("Move to (10, 20, 5)", [MOVE])
        monkeypatch.undo()
    call = {"name": "move_to", "arguments": {"target": [10, 20, 5]}}
    assert result.metadata["tool_call"] == call
    assert result.metadata["tool_calls"] == [call]
    assert result.metadata["step"] == step
    alias = result.metadata["parsed_tool_call"]
    assert (alias["tool"], alias["params"]) == ("move_to", {"target": [10, 20, 5]})
    assert (alias["name"], alias["arguments"]) == (call["name"], call["arguments"])
    assert (result.finish_reason, result.tokens_used) == ("tool_calls", 15 * len(sampler.requests))


def test_tools_are_refused_where_function_calling_is_off(url: str) -> None:
    """The key takes effect; and the prompt is not sent without the tools instead."""
    config = VLLMBackendConfig(SERVED, api_base=url, function_calling=False)
    with (
        VLLMBackend(config) as backend,
        pytest.raises(ConfigurationError, match="function_calling"),
    ):
        backend.generate_with_tools("Move", [MOVE])


@pytest.mark.slow
def test_a_script_that_never_unloads_leaves_nothing(url: str) -> None:
    """The document's whole example, run as it is: output, and no warning at the end."""
    script = ported(AGENT_ARENA + AGENT_ARENA_WEATHER, url=url.removesuffix("/v1"))
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("vLLM server is ready!\n Arthur.\n")


class FakeConfig(LlamaCppBackendConfig):
    """A server of the fake engine in llama.cpp's place."""

    def serving(self) -> ServeConfig:
        """The server that this needs."""
        return ServeConfig(model=self.model_path, engine="vllm")


@pytest.mark.slow
def test_a_backend_that_serves_stops_its_server(house: House) -> None:
    """The server lives from the constructor to unload."""
    backend = LlamaCppBackend(FakeConfig(str(house.model())))
    assert backend.is_available()
    result = backend.generate("Say something", system_prompt="Be brief.")
    assert result.text
    assert result.finish_reason in {"stop", "length"}
    assert house.processes()
    backend.unload()
    house.nothing_left()
    assert not backend.is_available()


def test_a_server_that_does_not_start_is_an_error_and_leaves_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The constructor raises what `enginehouse serve` would print."""
    with pytest.raises(ModelNotFoundError):
        LlamaCppBackend(FakeConfig("./nosuch"))
    with pytest.raises(ConfigurationError):
        LlamaCppBackend(BackendConfig("x.gguf", n_gpu_layers=0, max_tokens=0))


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["", "os.kill(os.getpid(), 9)", "raise KeyboardInterrupt"])
def test_however_a_script_ends_no_server_is_left(house: House, ending: str) -> None:
    """Without unload: the interpreter's end stops it, and kill -9 leaves that to the reaper."""
    script = """
from enginehouse.facades.agent_arena import LlamaCppBackend, LlamaCppBackendConfig
from enginehouse.deployment.configuration import ServeConfig
class FakeConfig(LlamaCppBackendConfig):
    def serving(self):
        return ServeConfig(model=self.model_path, engine="vllm")
import os
backend = LlamaCppBackend(FakeConfig(os.path.abspath("tiny")))
print(backend.generate("Say hi").finish_reason, flush=True)
"""
    house.model()
    done = house.start_program([sys.executable, "-W", "error", "-c", script + ending]).end()
    assert done.out.strip() in {"stop", "length"}, done.err
    until(lambda: not house.processes(), "a process is left")
    if "kill" in ending:
        house.run("ps")  # forgets what died
    else:
        assert ("Traceback" in done.err) == bool(ending)
        house.nothing_left()


def test_llama_cpp_s_settings_become_its_server_s() -> None:
    """Every field of the configuration reaches the server or the requests."""
    config = LlamaCppBackendConfig(
        "m.gguf",
        n_ctx=2048,
        n_parallel=2,
        n_batch=256,
        n_threads=3,
        n_gpu_layers=-1,
        repeat_penalty=1.1,
        use_mmap=False,
        use_mlock=True,
    )
    served = config.serving()
    assert (served.model, served.engine) == ("m.gguf", "llamacpp")
    assert served.server.model_dump(exclude_defaults=True) == {
        "max_model_len": 2048,
        "max_num_seqs": 2,
        "max_num_batched_tokens": 256,
        "extra_args": ["--gpu-layers", "all", "--threads", "3", "--load-mode", "mlock"],
    }
    assert config.parameters().repetition_penalty == 1.1
    assert LlamaCppBackendConfig("m.gguf").serving().server.extra_args == ["--gpu-layers", "0"]


def test_hugging_face_s_settings_become_its_server_s() -> None:
    """Likewise; layers cannot be shared out there."""
    served = HFBackendConfig("smollm2", dtype="float32", max_model_len=512).serving()
    assert (served.model, served.engine) == ("smollm2", "hf")
    assert served.server.model_dump(exclude_defaults=True) == {
        "dtype": "float32",
        "max_model_len": 512,
    }
    with pytest.raises(ConfigurationError, match="n_gpu_layers"):
        HFBackendConfig("smollm2", n_gpu_layers=2)
