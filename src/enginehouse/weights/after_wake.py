"""Adapters after a server has slept: proven again, loaded again, or unloaded.

vLLM's workers lose adapters while they sleep, but its front end still lists them: requests for them
are then silently answered by the base model (vllm#53888).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.errors import AdapterError, WireError
from enginehouse.engines.base import Engine, ServedEngine
from enginehouse.servers.endpoint import Server
from enginehouse.weights.loading import prove_or_reload
from enginehouse.weights.peft_folder import PeftFolder, read_peft_folder
from enginehouse.weights.served_models import served_models


async def prove_adapters_again(server: Server, engine: Engine) -> tuple[str, ...]:
    """Check that every adapter that the server lists still has an effect, one after the other.

    One without effect is loaded again from its folder; if that does not help, it is unloaded, so
    that requests for it fail instead of being answered by the base model. Returns the names of
    those. Raises WireError if the server does not answer.
    """
    assert isinstance(engine, ServedEngine), "hosted APIs do not sleep"
    base, *others = await served_models(server, engine)
    adapters = [model for model in others if model.parent is not None]
    if not adapters:
        return ()
    unloaded = []
    async with HTTPSampler(
        server.base_url,
        model=base.id,
        capabilities=engine.capabilities(server.version),
        wire=engine.wire,
        api_key=server.api_key,
        admin_key=server.admin_key,
        concurrency=1,  # together, such requests kill some servers
    ) as sampler:
        for adapter in adapters:
            folder = adapter.root or ""
            info = await asyncio.to_thread(_read, folder)
            if info is not None and info.is_zero:  # it never had an effect
                continue
            try:
                await prove_or_reload(sampler, adapter.id, path=folder, info=info)
            except AdapterError:
                with suppress(WireError):
                    await sampler.unload_adapter(adapter.id)
                unloaded.append(adapter.id)
    return tuple(unloaded)


def _read(folder: str) -> PeftFolder | None:
    """The adapter in `folder`; None if that is not on this machine."""
    try:
        return read_peft_folder(Path(folder))
    except AdapterError:
        return None
