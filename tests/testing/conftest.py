"""One fake engine for a module's tests, and a way to ask it without the client."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from enginehouse.testing.fake_engine import FakeEngineHandle, running_fake_engine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[FakeEngineHandle]:
    """With LoRA, a short context, and two served names."""
    arguments = ("--enable-lora", "--max-model-len", "64", "--served-model-name", "tiny", "alias")
    async with running_fake_engine(*arguments) as handle:
        yield handle
