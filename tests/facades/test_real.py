"""What the two documents promise, against a real vLLM that serves the names they use."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.command_line import SharedServer

from enginehouse.client.sampler import HTTPSampler
from enginehouse.engines.vllm.engine import VllmEngine
from enginehouse.engines.vllm.wire import VLLM

from .conftest import SERVED
from .snippets import AGENT_ARENA, AGENT_ARENA_WEATHER, REDBLACKBENCH, ported

CHECKS = """
assert result.finish_reason in {"stop", "length", "tool_calls"}, result
assert ("tool_call" in result.metadata) == (result.finish_reason == "tool_calls"), result
"""


@pytest.mark.engine
@pytest.mark.parametrize(
    ("served", "snippet", "begins"),
    [
        (SERVED, AGENT_ARENA + CHECKS + AGENT_ARENA_WEATHER + CHECKS, "vLLM server is ready!"),
        ("/workspace/models/Qwen3-14B", REDBLACKBENCH, ""),
    ],
    ids=["agent_arena", "redblackbench"],
)
async def test_only_the_import_line_changes(
    lora_vllm: SharedServer, vote_adapter: Path, served: str, snippet: str, begins: str
) -> None:
    """The whole example runs: answers on standard output, and nothing else said.

    The model that it names is an adapter of the server that these tests share.
    """
    async with HTTPSampler(
        lora_vllm.url,
        capabilities=VllmEngine().capabilities(None),
        wire=VLLM,
        admin_key=lora_vllm.admin_key,
    ) as sampler:
        await sampler.load_adapter(served, path=str(vote_adapter))
        try:
            done = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-W", "error", "-c", ported(snippet, url=lora_vllm.url)],
                capture_output=True,
                text=True,
                timeout=800,  # the examples ask for up to 1,024 tokens, and a CPU is slow
                check=False,
            )
        finally:
            await sampler.unload_adapter(served)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(begins)
    assert len(done.stdout.strip()) > len(begins)
