"""The models that requests may name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from enginehouse.core.errors import UnknownModelError, nearest
from enginehouse.deployment.base import Deployment
from enginehouse.engines.base import RemoteEngine
from enginehouse.gateway.adapters import AdapterFolder
from enginehouse.weights.store import StoredAdapter


@dataclass(frozen=True)
class NamedModel:
    """A model that a request may name, and the content of the adapter that the name stands for."""

    name: str
    adapter: StoredAdapter | None = None

    @property
    def adapter_digest(self) -> str | None:
        """The digest of that content."""
        return self.adapter.digest if self.adapter is not None else None


class Models:
    """What a deployment answers as; requests that name nothing get its default.

    `adapters` are loaded when they are asked for, besides those that the server has.
    """

    def __init__(self, deployment: Deployment, *, adapters: AdapterFolder | None = None) -> None:
        self._deployment = deployment
        self.adapters = adapters
        self.default = deployment.sampler.model
        self._default = NamedModel(self.default)
        self._known = {self.default, *deployment.models}
        # hosted APIs answer to aliases that they do not list
        self._open = isinstance(deployment.engine, RemoteEngine)

    async def find(self, name: str | None) -> NamedModel:
        """The model that a request names, and its adapter as that is now; nothing is loaded.

        Raises UnknownModelError, which lists the known names, AdapterError, and WireError.
        """
        if name is None or name == self.default:
            return self._default
        if name in self._known:
            return NamedModel(name)
        if self.adapters is not None and (adapter := await self.adapters.find(name)) is not None:
            return NamedModel(name, adapter)
        if not self._open:
            self._known |= set(await self._list_models())
            if name not in self._known:
                raise self._unknown(name)
        return NamedModel(name)

    @asynccontextmanager
    async def held(self, named: NamedModel) -> AsyncIterator[str]:
        """What the server calls the model, which it has for the length of the block.

        Raises AdapterError and WireError.
        """
        if named.adapter is None or self.adapters is None:
            yield named.name
            return
        async with self.adapters.held(named.name, named.adapter) as model:
            yield model

    async def names(self) -> tuple[str, ...]:
        """All names, the default first. Raises WireError."""
        listed = await self._list_models()
        return tuple(
            dict.fromkeys((self.default, *self._deployment.models, *listed, *self.adapter_names()))
        )

    def adapter_names(self) -> tuple[str, ...]:
        """The adapters that can be loaded, by name. Blocking, for the time of reading a folder."""
        return self.adapters.names() if self.adapters is not None else ()

    async def _list_models(self) -> tuple[str, ...]:
        if self._deployment.engine.wire.models_path is None:
            return ()
        listed = await self._deployment.sampler.models()
        ours = self.adapters.served_names() if self.adapters is not None else frozenset()
        return tuple(name for name in listed if name not in ours)

    def _unknown(self, name: str) -> UnknownModelError:
        known = sorted({*self._known, *self.adapter_names()})
        close = nearest(name, known)
        return UnknownModelError(
            f"there is no model called {name!r}",
            fix=(f"did you mean {close!r}? " if close else "") + f"known: {', '.join(known)}",
            status=404,
        )
