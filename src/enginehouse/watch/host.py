"""The server of a watch: started when it is needed, and again when it cannot serve what is next."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from enginehouse.core.errors import AdapterError
from enginehouse.deployment.base import Deployment
from enginehouse.deployment.configuration import ServeConfig
from enginehouse.deployment.opening import open_deployment
from enginehouse.deployment.preparation import choose_engine, with_adapters
from enginehouse.engines.base import SupportsAdapters
from enginehouse.results.curve import Kind
from enginehouse.runtime.context import Context
from enginehouse.watch.checkpoints import Finished
from enginehouse.weights.peft_folder import CONFIG, read_peft_folder


class Host:
    """One deployment at a time. LoRA is enabled when the first adapter appears, or if asked for.

    `adapters` are those that are known to come: the server is started for the largest rank.
    """

    adapters: tuple[Path, ...] = ()

    def __init__(self, plan: ServeConfig, context: Context, *, concurrency: int | None) -> None:
        self._plan = plan
        self._context = context
        self._concurrency = concurrency
        self._stack = AsyncExitStack()
        self._deployment: Deployment | None = None
        self._started_with = plan

    @property
    def has_model(self) -> bool:
        """Whether a model was named to start with; else the first checkpoint is."""
        return self._plan.model is not None or self._plan.path is not None

    async def ready(self, folder: Finished | None) -> Deployment:
        """A deployment that can answer as `folder` (None: its own model).

        Raises what `open_deployment` does, and AdapterError for an adapter that no server can be
        started for.
        """
        plan = await asyncio.to_thread(self._plan_for, folder)
        if self._deployment is None or plan != self._started_with:
            await self.close()
            opening = open_deployment(plan, self._context, concurrency=self._concurrency)
            self._deployment = await self._stack.enter_async_context(opening)
            self._started_with = plan
        return self._deployment

    async def close(self) -> None:
        """Stop the server, if there is one."""
        self._deployment = None
        await self._stack.aclose()

    def _plan_for(self, folder: Finished | None) -> ServeConfig:
        """What a server for it is started with: the same as the current one if that will do."""
        current = self._started_with if self._deployment is not None else None
        if folder is not None and folder.kind is Kind.ADAPTER:
            rank = read_peft_folder(folder.path, max_rank=self._largest_rank).rank
            if not self.has_model:
                raise AdapterError(
                    f"{folder.path} is an adapter, and its base is not known",
                    fix="name the base: enginehouse watch DIR MODEL",
                )
            if current and _takes_rank(current, rank):
                return current
            return with_adapters(self._plan, [folder.path, *self._largest_adapter()])
        if current and (self.has_model or Path(str(current.model)).exists()):
            return current
        plan = self._plan
        if not self.has_model and folder is not None:
            plan = plan.model_copy(update={"model": str(folder.path)})
        if plan.server.enable_lora or self.adapters:
            plan = with_adapters(plan, self._largest_adapter())
        return plan

    @property
    def _largest_rank(self) -> int | None:
        engine = choose_engine(self._plan.engine)
        return engine.lora.largest if isinstance(engine, SupportsAdapters) else None

    def _largest_adapter(self) -> list[Path]:
        """The adapter of the largest rank that can be served; the others are not read for it."""
        for folder in sorted(self.adapters, key=_declared_rank, reverse=True):
            with suppress(AdapterError):
                read_peft_folder(folder, max_rank=self._largest_rank)
                return [folder]
        return []


def _takes_rank(plan: ServeConfig, rank: int) -> bool:
    return plan.server.enable_lora and (plan.server.max_lora_rank or 0) >= rank


def _declared_rank(folder: Path) -> int:
    try:
        return int(json.loads((folder / CONFIG).read_bytes())["r"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return 0
