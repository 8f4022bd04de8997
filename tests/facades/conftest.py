"""A fake vLLM to ask, and what two projects' documents promise their users."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from enginehouse.testing.fake_engine import FakeEngineHandle, running_fake_engine

SERVED = "meta-llama/Llama-2-7b-chat-hf"


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[FakeEngineHandle]:
    """A fake vLLM that serves a model under the name of Agent Arena's examples."""
    async with running_fake_engine(model=SERVED) as handle:
        yield handle


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    """What a test leaves running is an error."""
    before = set(threading.enumerate())
    yield
    left = [t for t in threading.enumerate() if t not in before and "asyncio" not in t.name]
    assert left == []
