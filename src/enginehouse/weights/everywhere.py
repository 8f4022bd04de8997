"""One adapter, on every one of several servers or on none."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import msgspec

from enginehouse.core.errors import AdapterError, BadRequestError, ServerFaultError, WireError
from enginehouse.core.sampler import Sampler
from enginehouse.weights.store import StoredAdapter


class AdapterServer(Sampler, Protocol):
    """A server whose adapters can be changed while it runs; an HTTPSampler is one."""

    base_url: str

    @property
    def model(self) -> str:
        """The base model's name."""
        ...

    async def models(self) -> tuple[str, ...]:
        """The names that requests may use now, loaded adapters' among them."""
        ...

    def adapter_model(self, name: str) -> str:
        """The model that requests name to be answered by the adapter `name`."""
        ...

    async def load_adapter(self, name: str, *, path: str) -> str:
        """Load the adapter in `path` under `name`."""
        ...

    async def unload_adapter(self, name: str) -> None:
        """Forget the adapter `name`."""
        ...


class AliasedContent(msgspec.Struct, frozen=True, kw_only=True):
    """One content under one alias. Servers load it as `name`, and requests name `model`.

    `name` is unique for both, as an engine's caches know an adapter by its name and path.
    """

    alias: str
    name: str
    model: str
    stored: StoredAdapter


async def load_everywhere(servers: Sequence[AdapterServer], content: AliasedContent) -> None:
    """Load it on all, or on none: what has been loaded is unloaded when one fails. Idempotent.

    Raises AdapterError where a server refuses it, and WireError or ServerGoneError as it comes.
    """
    outcomes = await asyncio.gather(
        *(_load(server, content) for server in servers), return_exceptions=True
    )
    if any(error is not None for error in outcomes):
        loaded = [server for server, error in zip(servers, outcomes, strict=True) if error is None]
        await asyncio.gather(
            *(_unload(server, content) for server in loaded), return_exceptions=True
        )
        _raise(servers, outcomes, content, consequence="it is loaded on none")


async def unload_everywhere(servers: Sequence[AdapterServer], content: AliasedContent) -> None:
    """Unload it from all, from as many as can be. Idempotent. Raises as `load_everywhere` does."""
    outcomes = await asyncio.gather(
        *(_unload(server, content) for server in servers), return_exceptions=True
    )
    if any(error is not None for error in outcomes):
        _raise(servers, outcomes, content, consequence="it may still be loaded there")


async def _load(server: AdapterServer, content: AliasedContent) -> None:
    """That it is there already, by a request whose reply was lost, is as good."""
    try:
        await server.load_adapter(content.name, path=str(content.stored.path))
    except BadRequestError:
        if content.model not in await server.models():
            raise


async def _unload(server: AdapterServer, content: AliasedContent) -> None:
    """That it is not there any more is as good."""
    try:
        await server.unload_adapter(content.name)
    except BadRequestError:
        if content.model in await server.models():
            raise


def _raise(
    servers: Sequence[AdapterServer],
    outcomes: Sequence[BaseException | None],
    content: AliasedContent,
    *,
    consequence: str,
) -> None:
    """Raise the first error that is no refusal, or else what the first refusal stands for."""
    refusals: list[tuple[AdapterServer, WireError]] = []
    for server, error in zip(servers, outcomes, strict=True):
        if isinstance(error, BadRequestError | ServerFaultError):
            refusals.append((server, error))
        elif error is not None:
            raise error
    server, refusal = refusals[0]
    others = f" and {len(refusals) - 1} more" if len(refusals) > 1 else ""
    raise AdapterError(
        f"{server.base_url}{others} refused the adapter {content.alias}; {consequence}",
        why=refusal.message,
        fix=refusal.fix or "see the server's log",
    ) from refusal
