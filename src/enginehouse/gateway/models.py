"""The models that requests may name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from enginehouse.core.errors import UnknownModelError, nearest
from enginehouse.deployment.base import Deployment
from enginehouse.engines.base import RemoteEngine


class Models:
    """What a deployment answers as; requests that name nothing get its default."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self.default = deployment.sampler.model
        self._known = {self.default, *deployment.models}
        # hosted APIs answer to aliases that they do not list
        self._open = isinstance(deployment.engine, RemoteEngine)

    @asynccontextmanager
    async def held(self, name: str | None) -> AsyncIterator[str]:
        """What the server calls the model `name`, which it has for the length of the block.

        Raises UnknownModelError, which lists the known names, and WireError.
        """
        if name is None:
            yield self.default
            return
        if name not in self._known and not self._open:
            self._known |= set(await self._listed())
            if name not in self._known:
                raise self._unknown(name)
        yield name

    async def names(self) -> tuple[str, ...]:
        """All names, the default first. Raises WireError."""
        listed = await self._listed()
        return tuple(dict.fromkeys((self.default, *self._deployment.models, *listed)))

    async def _listed(self) -> tuple[str, ...]:
        if self._deployment.engine.wire.models_path is None:
            return ()
        return await self._deployment.sampler.models()

    def _unknown(self, name: str) -> UnknownModelError:
        close = nearest(name, self._known)
        return UnknownModelError(
            f"there is no model called {name!r}",
            fix=(f"did you mean {close!r}? " if close else "")
            + f"known: {', '.join(sorted(self._known))}",
            status=404,
        )
