"""Hydra's group drives the backends: composed settings, made into a backend, asked."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from enginehouse.core.errors import ConfigurationError
from enginehouse.deployment.configuration import ServeConfig
from enginehouse.facades.agent_arena import (
    HFBackend,
    LlamaCppBackend,
    VLLMBackend,
    VLLMBackendConfig,
    backends,
    make_backend,
)
from enginehouse.facades.agent_arena.composing import compose_backend
from enginehouse.testing.fake_engine import running_fake_engine

SCRIPT = Path(__file__).parents[2] / "examples/ask_backend.py"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of a fake engine that serves "m"."""
    loop = asyncio.new_event_loop()
    running = running_fake_engine(model="m", answers={"Say hi": "one two three four five six"})
    try:
        yield loop.run_until_complete(running.__aenter__()).url
    finally:
        loop.run_until_complete(running.__aexit__(None, None, None))
        loop.close()


def test_vllm(url: str) -> None:
    """Model, address and how to ask are the composed ones; switched-off tools stay off."""
    port = url.rpartition(":")[2]
    overrides = ["backend.model=m", "backend.host=127.0.0.1", f"backend.port={port}"]
    off = "backend.function_calling.enabled=false"
    with make_backend(compose_backend([*overrides, "backend.max_tokens=2", off])) as backend:
        assert isinstance(backend, VLLMBackend)
        assert backend.is_available()
        assert backend.generate("Say hi").finish_reason == "length"
        with pytest.raises(ConfigurationError, match="function_calling"):
            backend.generate_with_tools("Say hi", [])
    with make_backend(compose_backend(overrides)) as backend:
        assert backend.generate("Say hi").finish_reason == "stop"


@pytest.mark.parametrize(
    ("overrides", "kind", "engine", "server"),
    [
        (
            ["backend=llama_cpp", "backend.model_path=m.gguf", "backend.n_ctx=99"],
            LlamaCppBackend,
            "llamacpp",
            {"max_model_len": 99, "max_num_seqs": 1, "extra_args": ["--gpu-layers", "0"]},
        ),
        (
            ["backend=hf", "backend.model=m.gguf", "backend.dtype=float32"],
            HFBackend,
            "hf",
            {"dtype": "float32"},
        ),
    ],
    ids=["llama_cpp", "hf"],
)
def test_the_ones_that_serve(
    overrides: list[str],
    kind: type,
    engine: str,
    server: dict[str, object],
    url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server that is started for them, and how it is asked, are the composed ones."""
    started: list[ServeConfig] = []

    @asynccontextmanager
    async def served(config: ServeConfig) -> AsyncIterator[backends._Line]:
        started.append(config)
        async with backends._attached(VLLMBackendConfig("m", api_base=url)) as line:
            yield line

    monkeypatch.setattr(backends, "_served", served)
    with make_backend(compose_backend([*overrides, "backend.max_tokens=2"])) as backend:
        assert type(backend) is kind
        assert backend.generate("Say hi").finish_reason == "length"
    (config,) = started
    assert (config.model, config.engine) == ("m.gguf", engine)
    assert config.server.model_dump(exclude_defaults=True) == server


@pytest.mark.slow
def test_an_application_of_one_s_own_finds_the_group(url: str, tmp_path: Path) -> None:
    """examples/ask_backend.py: our search path in its settings is all; nothing is written."""
    words = [f"backend.api_base={url}/v1", "backend.model=m", "prompt=Say hi"]
    done = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT), *words],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["one", "two", "three", "four", "five", "six"]
    assert list(tmp_path.iterdir()) == []
