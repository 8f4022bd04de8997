"""One machine's part of a server that spans several: it answers nobody, and ends with the head."""

from __future__ import annotations

import asyncio

from enginehouse.core.errors import ServerGoneError, UnsupportedError
from enginehouse.diagnosis import diagnose_log, explained
from enginehouse.engines.base import LaunchContext, SupportsNodes
from enginehouse.engines.registry import engines_that
from enginehouse.processes.process import hold_process
from enginehouse.processes.tree import this_process
from enginehouse.servers.ports import hand_over, lease_ports, release_ports
from enginehouse.servers.readiness import describe_exit
from enginehouse.servers.records import make_folder
from enginehouse.servers.server import OwnedServer

_LOOK_EVERY = 0.5


async def run_worker(owned: OwnedServer, *, head: str, node: int) -> None:
    """Run machine `node`'s part of the server whose first machine is `head`, until cancelled.

    Raises UnsupportedError for an engine without such parts, and ServerGoneError, with cause and
    log, when it ends by itself, whatever its exit code.
    """
    engine, layout, timings = owned.engine, owned.context.layout, owned.timings
    if not isinstance(engine, SupportsNodes):
        able = engines_that(lambda other: isinstance(other, SupportsNodes))
        raise UnsupportedError(
            f"a server of {engine.name} cannot span several machines",
            fix=f"use an engine that can ({', '.join(able)}), or a server on each machine",
        )
    served = owned.options.served_model_name or owned.model.name
    folder = make_folder(layout, model=served, name=None)
    lease = lease_ports(layout, host="127.0.0.1", wanted=None, name=folder.name)
    try:
        context = LaunchContext(
            environment=owned.environment,
            model_path=str(owned.model.path),
            served_model_name=served,
            port=lease.port,
            internal_port=lease.internal,
            start_limit=owned.limits.total,
            admin_key="",
        )
        command = engine.worker(owned.options, context=context, head=head, node=node)
        log = folder / "server.log"
        owned.context.notify(f"machine {node} of the server on {head}; log: {log}")
        with hold_process(command, log=log, orphan_grace=timings.orphan_grace) as held:
            lease = hand_over(layout, lease, owner=held.identity)
            process = held.begin()
        try:
            while (code := process.exit_code()) is None:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(_LOOK_EVERY)
        finally:
            lease = hand_over(layout, lease, owner=this_process())
            await process.stop(grace=timings.stop_grace)
    finally:
        release_ports(layout, lease)
    raise explained(
        ServerGoneError(
            f"the part on machine {node} ended with {describe_exit(code)}",
            why=f"its log does not say; the server on {head} may have ended",
            fix="read the log of that server, too; then resume",
        ),
        diagnose_log(log, profile=engine.log_profile, exit_code=code),
        log=log,
    )
