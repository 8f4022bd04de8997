"""Loading one adapter into a server, and proving again one that the server may have lost."""

from __future__ import annotations

from contextlib import suppress

from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.errors import AdapterError, BadRequestError, ServerFaultError
from enginehouse.weights.peft_folder import PeftFolder
from enginehouse.weights.proof import Baseline, Effect, prove_beside_others, prove_effect


async def load_adapter(server: HTTPSampler, name: str, *, path: str) -> None:
    """Load the adapter in `path`, a folder as the server sees it, under `name`. Idempotent.

    Raises AdapterError if the server refuses it, and WireError if it does not answer.
    """
    try:
        await server.load_adapter(name, path=path)
    except (BadRequestError, ServerFaultError) as error:
        # Another process may have loaded it, or a request whose reply was lost.
        refused = isinstance(error, BadRequestError)
        if refused and server.adapter_model(name) in await server.models():
            return
        raise _refused(server, error, f"refused the adapter {name}; it is not loaded") from error


async def unload_adapter(server: HTTPSampler, name: str) -> None:
    """Unload the adapter `name`. Idempotent. Raises as `load_adapter` does."""
    try:
        await server.unload_adapter(name)
    except (BadRequestError, ServerFaultError) as error:
        refused = isinstance(error, BadRequestError)
        if refused and server.adapter_model(name) not in await server.models():
            return
        what = f"refused to unload the adapter {name}; it may still be loaded"
        raise _refused(server, error, what) from error


def _refused(
    server: HTTPSampler, error: BadRequestError | ServerFaultError, what: str
) -> AdapterError:
    return AdapterError(
        f"{server.base_url} {what}", why=error.message, fix=error.fix or "see the server's log"
    )


async def prove_or_reload(
    server: HTTPSampler,
    name: str,
    *,
    path: str,
    info: PeftFolder | None = None,
    baseline: Baseline | None = None,
) -> Effect:
    """Prove the effect of an adapter that had one before; load it again if it was lost.

    With a `baseline`, by prove_beside_others. Raises AdapterError if it cannot be loaded, or has
    no effect even then, and WireError.
    """
    with suppress(AdapterError):
        return await prove_adapter(server, name, info=info, baseline=baseline)
    await unload_adapter(server, name)
    await load_adapter(server, name, path=path)
    return await prove_adapter(server, name, info=info, baseline=baseline)


async def prove_adapter(
    server: HTTPSampler, name: str, *, info: PeftFolder | None, baseline: Baseline | None
) -> Effect:
    """Prove the effect of a loaded adapter, with a `baseline` beside other requests."""
    model = server.adapter_model(name)
    if baseline is None:
        return await prove_effect(server, model=model, base_model=server.model, info=info)
    return await prove_beside_others(server, model=model, baseline=baseline, info=info)
