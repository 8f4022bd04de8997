"""Our client on the text generation server that megatron-core ships.

Built here: an environment of megatron-core without CUDA, and a stand-in for the model. What is
real is the server: what it takes, what it refuses, and how it answers.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uv
from tests.support import SUPPORT

from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.errors import BadRequestError
from enginehouse.core.messages import TextPrompt
from enginehouse.core.sampler import SampleRequest
from enginehouse.core.sampling import SamplingParameters
from enginehouse.engines.megatron.engine import MegatronEngine
from enginehouse.provisioning.plans import find_links
from enginehouse.testing.check_engine import check

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with megatron-core, at the versions of megatron-requirements.txt."""
    folder = tmp_path_factory.mktemp("megatron") / "venv"
    env, backend = dict(os.environ), ["--torch-backend", "cpu"]
    if links := find_links():
        env["UV_FIND_LINKS"], backend = links, []
    requirements = str(SUPPORT / "megatron-requirements.txt")
    install = ["pip", "install", "--python", str(folder), *backend, "-r", requirements]
    for arguments in (["venv", "-p", sys.executable, str(folder)], install):
        subprocess.run(
            [uv.find_uv_bin(), "--no-progress", *arguments],
            env=env,
            check=True,
            cwd=folder.parent,
            timeout=1800,
        )
    return folder / "bin" / "python"


@pytest.fixture
async def sampler(python: Path, tmp_path: Path) -> AsyncIterator[HTTPSampler]:
    """Our client on a server of its own."""
    address = tmp_path / "address"
    with (tmp_path / "log").open("wb") as log:
        server = await asyncio.create_subprocess_exec(
            python, SUPPORT / "megatron_server.py", address, stdout=log, stderr=log
        )
    try:
        async with asyncio.timeout(120):
            while not (address.exists() and address.read_text()):
                assert server.returncode is None, (tmp_path / "log").read_text()
                await asyncio.sleep(0.05)
        engine = MegatronEngine()
        async with HTTPSampler(
            address.read_text(),
            model="mine",
            capabilities=engine.capabilities(None),
            wire=engine.wire,
        ) as sampler:
            yield sampler
    finally:
        if server.returncode is None:
            server.kill()
        await server.wait()


async def test_megatron_s_own_server_passes_the_conformance_suite(sampler: HTTPSampler):
    """Every case of what is declared; what it refuses is an error, and it knows no names."""
    results = await check(sampler, inapplicable={"unknown_model": "takes no model's name"})
    assert {r.name: r.detail for r in results if r.outcome == "failed"} == {}
    passed = {r.name for r in results if r.outcome == "passed"}
    assert {"text", "stop", "text_logprobs", "max_tokens", "context_overflow"} <= passed
    # the stand-in's answer goes on from "a"; a prompt's k-th log-probability is 1 - k
    request = SampleRequest(
        prompt=TextPrompt("Hello"),
        parameters=SamplingParameters(max_tokens=3, temperature=0.7, prompt_logprobs=0),
    )
    response = await sampler.sample(request)
    assert response.completions[0].text == "abc"
    assert (response.prompt_tokens, response.completion_tokens) == (5, 3)
    assert response.prompt_logprobs is not None
    values = [None if token is None else token.logprob for token in response.prompt_logprobs]
    assert values == [None, -1, -2, -3, -4]
    hot = SampleRequest(prompt=TextPrompt("Hello"), parameters=SamplingParameters(temperature=200))
    with pytest.raises(BadRequestError, match="less than or equal to 100"):
        await sampler.sample(hot)
