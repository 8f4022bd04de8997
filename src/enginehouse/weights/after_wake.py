"""The adapters of a server that has slept: each is proven again, loaded again, or unloaded.

vLLM's workers lose adapters in their sleep, while its front end goes on listing them: requests for
them are then answered by the base model, with nothing to show for it (vllm#53888).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.errors import AdapterError, WireError
from enginehouse.engines.base import Engine, ServedEngine
from enginehouse.servers.endpoint import Server
from enginehouse.weights.peft_folder import PeftFolder, read_peft_folder
from enginehouse.weights.proof import prove_effect
from enginehouse.weights.served_models import ServedModel, served_models


async def prove_adapters_again(server: Server, engine: Engine) -> tuple[str, ...]:
    """See that every adapter that the server lists has an effect, one after the other.

    One without effect is loaded again from its folder; where that does not help, it is unloaded, so
    that requests for it fail instead of being answered by the base model. Returns the names of
    those. Raises WireError for a server that does not answer.
    """
    assert isinstance(engine, ServedEngine), "hosted APIs do not sleep"
    base, *others = await served_models(server, engine)
    adapters = [model for model in others if model.parent is not None]
    if not adapters:
        return ()
    async with HTTPSampler(
        server.base_url,
        model=base.id,
        capabilities=engine.capabilities(server.version),
        wire=engine.wire,
        api_key=server.api_key,
        admin_key=server.admin_key,
        concurrency=1,  # together, such requests kill some servers
    ) as sampler:
        return tuple([model.id for model in adapters if not await _is_there(sampler, model)])


async def _is_there(sampler: HTTPSampler, adapter: ServedModel) -> bool:
    """Whether it has an effect, perhaps after it was loaded once more."""
    info = await asyncio.to_thread(_read, adapter)
    if info is not None and info.is_zero:  # it never had one
        return True
    if await _has_effect(sampler, adapter, info):
        return True
    with suppress(WireError):
        await sampler.unload_adapter(adapter.id)
        await sampler.load_adapter(adapter.id, path=adapter.root or "")
        if await _has_effect(sampler, adapter, info):
            return True
    with suppress(WireError):
        await sampler.unload_adapter(adapter.id)
    return False


async def _has_effect(sampler: HTTPSampler, adapter: ServedModel, info: PeftFolder | None) -> bool:
    try:
        await prove_effect(sampler, model=adapter.id, base_model=sampler.model, info=info)
    except AdapterError:
        return False
    return True


def _read(adapter: ServedModel) -> PeftFolder | None:
    """What is in its folder, if that is on this machine."""
    try:
        return read_peft_folder(Path(adapter.root or ""))
    except AdapterError:
        return None
