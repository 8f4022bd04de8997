"""Swapping the weights of a server: our own while we run it, or one that is running already."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from enginehouse.core.errors import WeightsError
from enginehouse.deployment.running_servers import canonical_address, find_running
from enginehouse.deployment.supervision import Supervisor
from enginehouse.engines.base import ServedEngine
from enginehouse.servers.endpoint import Server
from enginehouse.servers.records import list_servers, weights_file
from enginehouse.servers.server import OwnedServer
from enginehouse.store.layout import Layout
from enginehouse.weights.checkpoint import digest_of
from enginehouse.weights.declared import Weights, read_declaration
from enginehouse.weights.replacement import PENDING
from enginehouse.weights.served_models import served_models
from enginehouse.weights.swap import WeightSwapper


class WeightsInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The weights that a server should have, and what it calls those that it has.

    `path` None: they were sent, and are on no disk; a restart brings back those in `declared`.
    `named` None: it does not say. `agrees` is false if a swap was interrupted.
    """

    server: str
    path: Path | None
    declared: Path
    digest: str
    version: int
    named: str | None
    agrees: bool


@asynccontextmanager
async def swapping(
    owned: OwnedServer, *, supervisor: Supervisor, alone: bool
) -> AsyncIterator[WeightSwapper | None]:
    """Have restarts of our own server bring back the weights that were swapped in.

    Unless `alone`, also those that another process swapped in (`enginehouse weights swap`). None
    where weights cannot be swapped.
    """
    server, model, layout = owned.server, owned.model, owned.context.layout
    swaps = owned.options.enable_weight_swap and owned.engine.wire.weights is not None
    if not swaps or model.weights_digest is None:
        yield None
        return
    assert server.name is not None
    async with WeightSwapper(
        server,
        engine=owned.engine,
        started=Weights(path=Path(model.path), digest=model.weights_digest),
        file=weights_file(layout, server.name),
        layout=layout,
        alone=alone,
        condemn=supervisor.condemn,
    ) as swapper:
        supervisor.restorations.append(swapper.restore)
        yield swapper


@asynccontextmanager
async def swapper_of(
    target: str, *, layout: Layout, api_key: str | None = None
) -> AsyncIterator[WeightSwapper]:
    """The swapper of a running server: our own by name, or any by address.

    Its folders must be on this machine, and its development endpoints enabled. Raises
    UnknownNameError, WireError, ModelError or WeightsError.
    """
    swappable = await _swappable(target, layout=layout, api_key=api_key)
    async with swappable.swapper(layout) as swapper:
        if not swappable.ours:
            _require_known(await swapper.name(), swapper)
            await _forget_declaration(swapper, swappable.file)
        yield swapper


async def weights_info(target: str, *, layout: Layout) -> WeightsInfo:
    """Which weights a server has; changes nothing. Raises as `swapper_of` does."""
    swappable = await _swappable(target, layout=layout)
    async with swappable.swapper(layout) as swapper:
        current, declared, named = swapper.current, swapper.declared, await swapper.name()
        if not swappable.ours:
            _require_known(named, swapper)
            if named == swapper.unnamed:
                current = declared = swapper.started
    assert declared.path is not None
    expected = (current.name,) if current.version else (current.name, swapper.unnamed)
    return WeightsInfo(
        server=target,
        path=current.path,
        declared=declared.path,
        digest=current.digest,
        version=current.version,
        named=named,
        agrees=named in (None, *expected),
    )


def declared_folders(layout: Layout) -> frozenset[Path]:
    """The folders that servers of this machine may need for their next restart. Blocking."""
    ours = [weights_file(layout, status.record.name) for status in list_servers(layout)]
    declarations = [read_declaration(file) for file in (*ours, *layout.weights.glob("*.json"))]
    return frozenset(one.declared.path for one in declarations if one and one.declared.path)


@dataclass(frozen=True, kw_only=True)
class _Swappable:
    """A running server, the weights that it was started with, and where others are declared."""

    server: Server
    engine: ServedEngine
    ours: bool
    started: Weights
    file: Path

    def swapper(self, layout: Layout) -> WeightSwapper:
        return WeightSwapper(
            self.server, engine=self.engine, started=self.started, file=self.file, layout=layout
        )


async def _swappable(target: str, *, layout: Layout, api_key: str | None = None) -> _Swappable:
    running = await find_running(target, layout=layout, api_key=api_key)
    record, server, engine = running.record, running.server, running.engine
    if record is not None and engine.wire.weights is not None and not record.swaps_weights:
        raise WeightsError(
            f"the weights of {record.name} cannot be replaced while it runs",
            why="it was started without --enable-weight-swap",
            fix=f"enginehouse stop {record.name}; then serve the model with --enable-weight-swap",
            kind="unsupported",
        )
    (base, *_) = await served_models(server, engine)
    return _Swappable(
        server=server,
        engine=engine,
        ours=record is not None,
        started=await asyncio.to_thread(_started, base.root, server=server, layout=layout),
        file=weights_file(layout, record.name)
        if record
        else _foreign_file(layout, server.base_url),
    )


def _started(root: str | None, *, server: Server, layout: Layout) -> Weights:
    if root is None or not Path(root).is_dir():
        raise WeightsError(
            f"the checkpoint of {server.name or server.base_url} is not on this machine",
            why=f"it reports that it was started with {root!r}, which is not a folder here",
            fix="swap where the server runs; start it with a checkpoint's folder",
            kind="unknown",
        )
    return Weights(path=Path(root), digest=digest_of(Path(root), layout=layout))


def _foreign_file(layout: Layout, base_url: str) -> Path:
    spelling = canonical_address(base_url).encode()
    return layout.weights / f"{hashlib.sha256(spelling).hexdigest()[:16]}.json"


def _require_known(named: str | None, swapper: WeightSwapper) -> None:
    """Raise WeightsError if a foreign server was restarted, or swapped by another program."""
    current = swapper.current
    interrupted = current.version > 0 and named is not None and named.startswith(PENDING)
    if named not in (None, swapper.unnamed, current.name) and not interrupted:
        raise WeightsError(
            "the weights of the server are not known",
            why=f"it calls them {named!r}, and they were not swapped in by enginehouse",
            fix="restart it",
            kind="unknown",
        )


async def _forget_declaration(swapper: WeightSwapper, file: Path) -> None:
    """What was declared for a foreign server no longer holds once it was restarted."""
    try:
        with FileLock(file.with_suffix(".lock"), timeout=0, mode=0o600):
            if await swapper.name() == swapper.unnamed:
                await asyncio.to_thread(file.unlink, missing_ok=True)
    except Timeout:
        pass  # a swap is in progress, which may be the first of this server
