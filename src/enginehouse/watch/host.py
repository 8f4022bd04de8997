"""The resident server of a watch: started when it is needed, and again when it cannot serve."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from enginehouse.core.errors import AdapterError
from enginehouse.core.incidents import Incident
from enginehouse.deployment.configuration import ServeConfig
from enginehouse.deployment.resident import with_adapters
from enginehouse.deployment.serving import OnIncident, Serving, choose_engine
from enginehouse.engines.base import SupportsAdapters
from enginehouse.engines.registry import load_engine
from enginehouse.results.curve import Kind
from enginehouse.runtime.context import Notify
from enginehouse.store.layout import Layout
from enginehouse.watch.checkpoints import Finished
from enginehouse.weights.peft_folder import CONFIG, read_peft_folder


class Swappable(Protocol):
    """A server that can be had answer as one checkpoint or adapter after another."""

    async def target(self, path: Path | None) -> Serving:
        """Have it answer as what is in `path`; None is its own model."""
        ...


Opening = Callable[..., AbstractAsyncContextManager[Swappable]]  # as `resident`


class Host:
    """One server at a time. LoRA is enabled when the first adapter is there, or if asked for."""

    def __init__(
        self,
        config: ServeConfig,
        *,
        open_resident: Opening,
        layout: Layout,
        notify: Notify,
        concurrency: int | None,
    ) -> None:
        self._given = config
        self._open = open_resident
        self._layout = layout
        self._notify = notify
        self._concurrency = concurrency
        self._stack = AsyncExitStack()
        self._current: Swappable | None = None
        self._config = config
        self._listener: OnIncident = lambda _: None
        self.adapters: tuple[Path, ...] = ()
        """Those that are known to come: the server is started for ranks as large as theirs."""

    @property
    def has_model(self) -> bool:
        """Whether a model was named to start with; else the first checkpoint is."""
        return self._given.model is not None or self._given.path is not None

    async def ready(self, found: Finished | None) -> Swappable:
        """A server that can answer as `found` (None: its own model); raises what starting does.

        Raises AdapterError for an adapter that no server can be started for.
        """
        wanted = await asyncio.to_thread(self._wanted, found)
        if self._current is None or wanted is not self._config:
            await self.close()
            opened = self._open(
                wanted,
                layout=self._layout,
                notify=self._notify,
                concurrency=self._concurrency,
                on_incident=self._hear,
            )
            self._current = await self._stack.enter_async_context(opened)
            self._config = wanted
        return self._current

    async def close(self) -> None:
        """Stop the server, if there is one."""
        self._current = None
        await self._stack.aclose()

    @asynccontextmanager
    async def asking(
        self, _: Any, *, serving: Serving, on_incident: OnIncident, **__: Any
    ) -> AsyncIterator[Serving]:
        """As `asking`, of what was made ready; `on_incident` hears of its deaths."""
        self._listener = on_incident
        try:
            yield serving
        finally:
            self._listener = _nobody

    def _hear(self, incident: Incident) -> None:
        self._listener(incident)

    def _wanted(self, found: Finished | None) -> ServeConfig:
        """The configuration of a server that can do it: the current one's, if that can."""
        if found is not None and found.kind is Kind.ADAPTER:
            rank = read_peft_folder(found.path, max_rank=self._largest_rank).rank
            if not self.has_model:
                raise AdapterError(
                    f"{found.path} is an adapter, and its base is not known",
                    fix="name the base: enginehouse watch DIR MODEL",
                )
            options = self._config.server
            enough = options.enable_lora and (options.max_lora_rank or 0) >= rank
            if self._current is not None and enough:
                return self._config
            wanted = with_adapters(self._given, [found.path, *self._largest()])
            same = self._current is not None and wanted == self._config
            return self._config if same else wanted
        if self._current is not None and not self._is_gone():
            return self._config
        config = self._given
        if not self.has_model and found is not None:
            config = config.model_copy(update={"model": str(found.path)})
        if config.server.enable_lora or self.adapters:
            config = with_adapters(config, self._largest())
        return config

    @property
    def _largest_rank(self) -> int | None:
        engine = load_engine(choose_engine(self._given.engine, notify=lambda _: None))
        return engine.lora.largest if isinstance(engine, SupportsAdapters) else None

    def _largest(self) -> list[Path]:
        """The adapter of the largest rank, if one can be served: the others are not read for it."""
        for folder in sorted(self.adapters, key=_declared_rank, reverse=True):
            with suppress(AdapterError):
                read_peft_folder(folder, max_rank=self._largest_rank)
                return [folder]
        return []

    def _is_gone(self) -> bool:
        """Whether the checkpoint that the server was started with was removed meanwhile."""
        return not self.has_model and not Path(str(self._config.model)).exists()


def _nobody(_: Incident) -> None:
    """Hear of a death between two evaluations; the server's log has it."""


def _declared_rank(folder: Path) -> int:
    try:
        return int(json.loads((folder / CONFIG).read_bytes())["r"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return 0
