"""The client that the functions share: a connection to one vLLM, and its adapters. Asynchronous."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from enginehouse.client.stack import ServerLayers
from enginehouse.client.transport import open_transport
from enginehouse.core.errors import (
    AdapterError,
    ConfigurationError,
    ConnectionFailedError,
    UnknownModelError,
    UnsupportedError,
    WeightsError,
    WireError,
)
from enginehouse.core.messages import TextPrompt
from enginehouse.core.sampler import SampleRequest, SampleResponse
from enginehouse.core.sampling import SamplingParameters
from enginehouse.deployment.running_servers import (
    RunningServer,
    find_running,
    largest_rank,
)
from enginehouse.deployment.samplers import exclusive_requests, make_sampler, separated_scores
from enginehouse.deployment.swapping import declared_folders, swapper_of
from enginehouse.engines.vllm.quirks import LORA_PROMPT_LOGPROBS, NAMED_TOKENS
from enginehouse.facades.tink.configuration import VLLMConfig
from enginehouse.facades.tink.errors import NoAdapterError, UnreachableError
from enginehouse.store.layout import Layout
from enginehouse.weights.peft_folder import Shapes, checkpoint_shapes
from enginehouse.weights.pool import AdapterPool
from enginehouse.weights.served_models import served_models
from enginehouse.weights.store import AdapterStore

logger = logging.getLogger("enginehouse.facades.tink")
_LOOK_EVERY = 0.5  # seconds
_SENT = "sent-"  # prefix of folders with sent weights; the next is that of this process
_OURS = f"{_SENT}{secrets.token_hex(4)}-"
_SPARED = 86_400  # seconds


class Client:
    """One server, as Tink uses it. Everything happens on one event loop."""

    def __init__(
        self,
        config: VLLMConfig,
        running: RunningServer,
        *,
        pool: AdapterPool,
        base: Shapes | None,
        layout: Layout,
    ) -> None:
        self.config = config
        self.server = running.server
        self._engine = running.engine
        self._pool = pool
        self._base = base
        self._layout = layout
        self._store = AdapterStore(layout)
        self._paths: dict[str, str] = {}
        self.communicates = False

    async def generate(
        self, prompts: Sequence[str], *, adapter: str | None, parameters: SamplingParameters
    ) -> list[SampleResponse]:
        """Answers in the order of the prompts; if one fails, the others are cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(
                        self._pool.sample(
                            SampleRequest(
                                prompt=TextPrompt(prompt), parameters=parameters, model=adapter
                            )
                        )
                    )
                    for prompt in prompts
                ]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def register(self, adapter: str, path: str, *, prove: bool) -> None:
        """Check, copy, load and prove an adapter."""
        if not self.config.enable_lora:
            raise ConfigurationError(
                "enable_lora is off for this client",
                fix="set VLLM_ENABLE_LORA=true, and serve the model with --enable-lora",
            )
        max_rank = largest_rank(self.server, layout=self._layout)
        try:
            stored = await asyncio.to_thread(
                self._store.add, Path(path), base=self._base, max_rank=max_rank
            )
        except AdapterError as error:
            raise NoAdapterError(
                error.message, why=error.why, fix=error.fix, log=error.log
            ) from error
        if (rank := stored.info.rank) > (limit := self.config.max_lora_rank):
            raise NoAdapterError(
                f"{path} has rank {rank}, and this client was told to take {limit} at most",
                fix=f"set VLLM_MAX_LORA_RANK={rank}; the server's --max-lora-rank counts, too",
            )
        if stored.info.is_zero:  # as PEFT makes them, and Tink registers them, before any training
            logger.warning("the adapter %s changes nothing: it has not been trained", adapter)
        await self._pool.load(adapter, stored.path, prove=prove and not stored.info.is_zero)
        self._paths[adapter] = str(path)

    async def unregister(self, adapter: str) -> bool:
        """Whether there was an adapter to unload."""
        try:
            await self._pool.unload(adapter)
        except UnknownModelError:
            return False
        return True

    async def adapters(self) -> list[dict[str, str]]:
        """The registered adapters."""
        return [
            {
                "adapter_id": one.alias,
                "lora_path": self._paths.get(one.alias, str(one.stored.path)),
                "digest": one.stored.digest,
            }
            for one in self._pool.adapters()
        ]

    async def info(self) -> dict[str, Any]:
        """Facts about the server, and whether it answers now."""
        try:
            await served_models(self.server, self._engine)
            available = True
        except WireError:
            available = False
        names = [one.alias for one in self._pool.adapters()]
        return {
            "initialized": True,
            "available": available,
            "base_url": self.server.base_url,
            "model": self.server.models[0],
            "vllm_version": self.server.version,
            "enable_lora": self.config.enable_lora,
            "max_loras": self.config.max_loras,
            "max_lora_rank": self.config.max_lora_rank,
            "active_loras": len(names),
            "lora_adapters": names,
            "communicator_initialized": self.communicates,
        }

    async def communicate(self) -> None:
        """Check that weights can be swapped."""
        await self.swappable()
        self.communicates = True

    async def stop_communicating(self) -> None:
        """Forget the check; nothing is open."""
        self.communicates = False

    async def swappable(self) -> Path:
        """A checkpoint with the served types. Raises WeightsError if weights cannot be swapped."""
        async with swapper_of(self.server.base_url, layout=self._layout) as swapper:
            if await swapper.name() is None:
                raise WeightsError(
                    f"the weights of the server at {self.server.base_url} cannot be updated",
                    why="it has no development endpoints",
                    fix="start it with `enginehouse serve MODEL --enable-weight-swap`",
                    kind="unsupported",
                )
            assert swapper.declared.path is not None
            return swapper.declared.path

    def new_folder(self) -> Path:
        """A folder for weights to swap in; it does not exist yet."""
        return self._layout.weights / f"{_OURS}{secrets.token_hex(8)}"

    async def swap(self, folder: Path) -> None:
        """Swap in the weights in `folder`. Weights sent before that no server needs are deleted."""
        async with swapper_of(self.server.base_url, layout=self._layout) as swapper:
            try:
                await swapper.swap(folder)
            except BaseException:
                if swapper.current.path != folder:
                    shutil.rmtree(folder, ignore_errors=True)
                raise
        await asyncio.to_thread(_sweep, self._layout)

    async def reset_prefix_cache(self) -> None:
        """Make the server drop every cached prefix, and check that it did."""
        wire, server = self._engine.wire, self.server
        if wire.weights is None:
            raise UnsupportedError(f"a {self._engine.name} server has no such endpoint")
        async with open_transport(
            server.base_url,
            api_key=server.api_key,
            admin_key=server.admin_key,
            authorize=wire.authorize,
        ) as transport:
            reply = await transport.send(wire.weights.reset_cache)
        if reply.status in (404, 405):
            raise UnsupportedError(
                f"the server at {server.base_url} has no {wire.weights.reset_cache.path}",
                why=wire.weights.absent,
                fix="start it with `enginehouse serve MODEL --enable-weight-swap`",
            )
        if reply.status != 200:
            raise wire.error_reply(reply.status, reply.body, retry_after=reply.retry_after)
        if not wire.weights.is_reset(reply.body):
            raise WeightsError(
                "the server did not reset its prefix cache",
                why="in-flight requests were using it",
                fix="reset it when there are no requests",
                kind="cache",
            )


@asynccontextmanager
async def connected(config: VLLMConfig) -> AsyncIterator[Client]:
    """The client of the server in `config`, after waiting for it.

    Adapters stay loaded when the block ends, and any number of them share `max_loras` places. A
    deployment has neither, so the client has an adapter pool of its own. Raises ConfigurationError,
    UnreachableError and WireError.
    """
    layout = Layout.from_environment()
    running = await _waited_for(config.address(), seconds=config.timeout, layout=layout)
    first, *_ = await served_models(running.server, running.engine)
    base = await asyncio.to_thread(_shapes, first.root)
    # it may be vLLM's CPU build, which such requests can crash
    exclusive = exclusive_requests((LORA_PROMPT_LOGPROBS,) if config.enable_lora else ())
    separated = separated_scores((NAMED_TOKENS,))
    sampler = make_sampler(
        running.server,
        running.engine,
        concurrency=None,
        shared=ServerLayers(exclusive=exclusive, separated=separated),
    )
    async with sampler:
        pool = AdapterPool(
            sampler, max_loras=config.max_loras, store=AdapterStore(layout), base=base
        )
        yield Client(config, running, pool=pool, base=base, layout=layout)


def _sweep(layout: Layout) -> None:
    """Delete sent weights that no server needs: ours, and those other processes have left behind.

    Others' are kept for a day, since they may be about to be swapped in.
    """
    needed = declared_folders(layout)
    for folder in layout.weights.glob(f"{_SENT}*"):
        with suppress(OSError):
            old = time.time() - folder.stat().st_mtime > _SPARED
            if folder not in needed and (old or folder.name.startswith(_OURS)):
                shutil.rmtree(folder, ignore_errors=True)


def _shapes(root: str | None) -> Shapes | None:
    """The shapes of the served checkpoint, if it is on this machine."""
    if root is None or not Path(root).is_dir():
        return None
    return checkpoint_shapes(Path(root)) or None


async def _waited_for(address: str, *, seconds: float, layout: Layout) -> RunningServer:
    until = time.monotonic() + seconds
    while True:
        try:
            return await find_running(address, layout=layout)
        except ConnectionFailedError as error:
            if time.monotonic() >= until:
                raise UnreachableError(
                    f"the vLLM server can't be reached at {address}",
                    why=error.why or error.message,
                    fix="start it: enginehouse serve MODEL --enable-lora; or set VLLM_BASE_URL",
                ) from None
        await asyncio.sleep(_LOOK_EVERY)
