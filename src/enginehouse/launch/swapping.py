"""Which server's weights are to be swapped, and what must be known of it for that."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from enginehouse.client.sampler import Delivery
from enginehouse.core.errors import WeightsError
from enginehouse.engines.base import is_loopback
from enginehouse.launch.running_server import find_running, served_models
from enginehouse.launch.supervising import Supervisor
from enginehouse.servers.endpoint import Server
from enginehouse.servers.records import weights_file
from enginehouse.servers.server import OwnedServer
from enginehouse.store.layout import Layout
from enginehouse.weights.checkpoint import digest_of
from enginehouse.weights.declared import Weights
from enginehouse.weights.gate import Gate
from enginehouse.weights.swap import WeightSwapper

_NEVER_SWAPPED = "default"  # what vLLM calls weights that were never named


@dataclass(frozen=True, kw_only=True)
class Swaps:
    """What requests go through; `swapper` is None for a server whose weights cannot be swapped."""

    deliver: Delivery
    swapper: WeightSwapper | None


class WeightsInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The weights that a server is to have, and what it calls those that it has.

    `path` None: they were sent, and are on no disk; a restart brings back those in `declared`.
    `named` None: it does not say. `agrees` is false where a swap was broken off.
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
    owned: OwnedServer, *, supervisor: Supervisor, layout: Layout, alone: bool
) -> AsyncIterator[Swaps]:
    """Have restarts of a server of ours bring back the weights that were swapped in.

    By us; or, unless `alone`, by another process (`enginehouse weights swap`).
    """
    server, model = owned.server, owned.model
    reachable = is_loopback(owned.options.host)  # elsewhere development endpoints are off
    if owned.engine.wire.weights is None or not reachable or model.weights_digest is None:
        yield Swaps(deliver=supervisor.deliver, swapper=None)
        return
    gate = Gate(model.weights_digest, deliver=supervisor.deliver)
    assert server.name is not None
    async with WeightSwapper(
        server,
        engine=owned.engine,
        started=Weights(path=Path(model.path), digest=model.weights_digest),
        file=weights_file(layout, server.name),
        layout=layout,
        gate=gate,
        alone=alone,
        condemn=supervisor.condemn,
    ) as swapper:
        supervisor.restorations.append(swapper.restore)
        yield Swaps(deliver=gate.deliver, swapper=swapper)


@asynccontextmanager
async def swapper_of(target: str, *, layout: Layout) -> AsyncIterator[WeightSwapper]:
    """The swapper of a server that runs already: one of ours by name, or any by its address.

    It must run on this machine, and be loopback-only. Raises UnknownNameError, WireError,
    ModelError or WeightsError.
    """
    running = await find_running(target, layout=layout)
    record, server, engine = running.record, running.server, running.engine
    (base, *_) = await served_models(server, engine)
    started = await asyncio.to_thread(_started, base.root, server=server, layout=layout)
    file = weights_file(layout, record.name) if record else _foreign_file(layout, server.base_url)
    async with WeightSwapper(
        server, engine=engine, started=started, file=file, layout=layout
    ) as swapper:
        if record is None:
            _demand_known(await swapper.name(), file, started=started)
        yield swapper


async def weights_info(target: str, *, layout: Layout) -> WeightsInfo:
    """Which weights a server has. Raises as `swapper_of` does."""
    async with swapper_of(target, layout=layout) as swapper:
        current, declared = swapper.current, swapper.declared.path
        named = await swapper.name()
    assert declared is not None
    expected = (current.name,) if current.version else (current.name, _NEVER_SWAPPED)
    return WeightsInfo(
        server=target,
        path=current.path,
        declared=declared,
        digest=current.digest,
        version=current.version,
        named=named,
        agrees=named in (None, *expected),
    )


def _started(root: str | None, *, server: Server, layout: Layout) -> Weights:
    if root is None or not Path(root).is_dir():
        raise WeightsError(
            f"the checkpoint of {server.name or server.base_url} is not on this machine",
            why=f"it says that it was started with {root!r}, which is no folder here",
            fix="swap where the server runs; start it with a checkpoint's folder",
            kind="unknown",
        )
    return Weights(path=Path(root), digest=digest_of(Path(root), layout=layout))


def _foreign_file(layout: Layout, base_url: str) -> Path:
    return layout.weights / f"{hashlib.sha256(base_url.encode()).hexdigest()[:16]}.json"


def _demand_known(named: str | None, file: Path, *, started: Weights) -> None:
    """A server that is not ours may have been started again, or swapped by somebody else."""
    if named == _NEVER_SWAPPED:
        file.unlink(missing_ok=True)
    elif named not in (None, started.name) and not file.exists():  # the name once taken back
        raise WeightsError(
            "it is not known which weights the server has",
            why=f"it calls them {named!r}, and they were not swapped in from here",
            fix="start it again",
            kind="unknown",
        )
