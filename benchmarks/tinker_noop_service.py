"""A Tinker service whose jobs do nothing: its guard, its polls and its journal alone."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from fastapi import APIRouter, Request

from enginehouse.runtime.http_service import listening, running
from enginehouse.tinker.application import current_user, make_application
from enginehouse.tinker.future import SAMPLE, Future
from enginehouse.tinker.futures import Futures
from enginehouse.tinker.guard import Guard
from enginehouse.tinker.routes.futures import futures_routes
from enginehouse.tinker.wire.schema import PROTOBUF

NOOP = "/api/v1/noop"
_PAYLOAD = bytes(range(256)) * 4


def main() -> None:
    """Serve from the folder in the arguments, until killed; the address is the first line."""
    asyncio.run(_serve(Path(sys.argv[1])))


async def _serve(folder: Path) -> None:
    futures = Futures.open(folder)
    routes = [futures_routes(futures), _noop_routes(futures)]
    application = Guard(
        make_application(routes), authenticate=lambda key: key, largest_body=1 << 20
    )
    with listening(None, option="--port") as listener:
        async with running(application, listener) as service:
            print(service.url, flush=True)
            await service.ended()


def _noop_routes(futures: Futures) -> APIRouter:
    """One route that accepts what it is sent; with ?wait=1 it is never answered."""
    router = APIRouter()
    running_jobs: set[asyncio.Task[None]] = set()

    @router.post(NOOP)
    async def accept(request: Request) -> dict[str, str]:
        future = await futures.accept(
            key=request.headers["x-idempotency-key"],
            kind=SAMPLE,
            user=current_user(request),
            body=await request.body(),
            content_type="application/json",
            details={},
        )
        if future.take() and "wait" not in request.query_params:
            job = asyncio.create_task(_finish(future))
            running_jobs.add(job)
            job.add_done_callback(running_jobs.discard)
        return {"request_id": future.request_id}

    async def _finish(future: Future) -> None:
        await futures.finish(future, _PAYLOAD, content_type=PROTOBUF)

    return router


if __name__ == "__main__":
    main()
