"""Fake servers that somebody else runs, and what they have loaded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from enginehouse.engines.vllm.engine import VllmEngine
from enginehouse.servers.endpoint import attach_server
from enginehouse.testing.fake_engine import running_fake_engine


@asynccontextmanager
async def fake(*faults: dict[str, Any], flags: tuple[str, ...] = ()) -> AsyncIterator[str]:
    """The address of one with LoRA."""
    async with running_fake_engine("--enable-lora", *flags, faults=list(faults)) as engine:
        yield engine.url


async def loaded(url: str) -> list[str]:
    """The adapters that the server lists."""
    return list((await attach_server(url, engine=VllmEngine())).models[1:])
