"""What the two documents promise, against a real vLLM that serves the names they use."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

import enginehouse

from .conftest import SERVED
from .snippets import AGENT_ARENA, AGENT_ARENA_WEATHER, REDBLACKBENCH, ported

CHECKS = """
assert result.finish_reason in {"stop", "length", "tool_calls"}, result
assert ("tool_call" in result.metadata) == (result.finish_reason == "tool_calls"), result
"""


@pytest.mark.engine
@pytest.mark.timeout(900)  # the examples ask for up to 1,024 tokens, and a CPU is slow
@pytest.mark.parametrize(
    ("served", "snippet", "begins"),
    [
        (SERVED, AGENT_ARENA + CHECKS + AGENT_ARENA_WEATHER + CHECKS, "vLLM server is ready!"),
        ("/workspace/models/Qwen3-14B", REDBLACKBENCH, ""),
    ],
    ids=["agent_arena", "redblackbench"],
)
async def test_only_the_import_line_changes(served: str, snippet: str, begins: str) -> None:
    """The whole example runs: answers on standard output, and nothing else said."""
    async with enginehouse.serve(
        "smollm2", engine="vllm", served_model_name=served, max_model_len=2048
    ) as server:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-W", "error", "-c", ported(snippet, url=server.url)],
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(begins)
    assert len(done.stdout.strip()) > len(begins)
