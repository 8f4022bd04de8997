"""A service that has only the routes which list and manage what was trained before."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sysconfig
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn

from enginehouse.tinker.application import make_application
from enginehouse.tinker.checkpoint_paths import CheckpointPath
from enginehouse.tinker.checkpoints import CheckpointStore
from enginehouse.tinker.futures import Futures
from enginehouse.tinker.guard import Guard
from enginehouse.tinker.keys import KeyFile, Keys
from enginehouse.tinker.records.entries import CheckpointKind, CheckpointRecord, ModelRecord
from enginehouse.tinker.records.records import Records
from enginehouse.tinker.repeats import Repeats
from enginehouse.tinker.routes.accounts import account_routes
from enginehouse.tinker.routes.checkpoints import checkpoint_routes
from enginehouse.tinker.routes.client import client_routes
from enginehouse.tinker.routes.copies import copy_routes
from enginehouse.tinker.routes.downloads import download_routes
from enginehouse.tinker.routes.runs import run_routes
from enginehouse.tinker.routes.session_lists import session_list_routes
from enginehouse.tinker.routes.traces import trace_routes

FILES = {"adapter_config.json": "{}", "adapter_model.safetensors": "w" * 1000, "a/b c.txt": "ä"}


@dataclass(frozen=True, kw_only=True)
class ManagementService:
    """Its records and checkpoints, its address, and the keys of two users."""

    records: Records
    checkpoints: CheckpointStore
    futures: Futures
    url: str
    keys: dict[str, str]
    home: Path

    def client(self, user: str | None) -> httpx.AsyncClient:
        """A client with the user's key, or with none."""
        headers = {"x-api-key": self.keys[user]} if user else {}
        return httpx.AsyncClient(base_url=self.url, headers=headers, trust_env=False)

    async def save(
        self,
        name: str,
        *,
        model: ModelRecord,
        kind: CheckpointKind = "training",
        ttl_seconds: int | None = None,
    ) -> CheckpointRecord:
        """Save a checkpoint with FILES in it."""
        path = CheckpointPath(model.model_id, kind, name)
        async with self.checkpoints.reserve(path, request_id=str(path)) as reservation:
            for file, content in FILES.items():
                place = reservation.folder / file
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(content, encoding="utf-8")
            return await reservation.commit(model, ttl_seconds=ttl_seconds)

    async def tinker(self, *words: str, user: str) -> tuple[int, str, str]:
        """Run the SDK's command line as the user, in `home`: exit code, stdout, stderr."""
        return await run_tinker(*words, url=self.url, key=self.keys[user], home=self.home)


async def run_tinker(*words: str, url: str, key: str, home: Path) -> tuple[int, str, str]:
    """Run the SDK's command line, in `home`: exit code, stdout, stderr.

    Once in some 200 runs on a busy machine its process aborts, outside of Python (seen with 0.38).
    Then it is run again, at most three times.
    """
    for _ in range(4):
        ended = await _run_tinker(*words, url=url, key=key, home=home)
        if ended[0] != -signal.SIGABRT:
            break
    return ended


async def _run_tinker(*words: str, url: str, key: str, home: Path) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        str(Path(sysconfig.get_path("scripts")) / "tinker"),
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=home,
        env={
            "PATH": os.defpath,
            "HOME": str(home),
            "TINKER_BASE_URL": url,
            "TINKER_API_KEY": key,
            "TINKER_TELEMETRY": "0",
            "PYTHONFAULTHANDLER": "1",
        },
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


@asynccontextmanager
async def management_service(home: Path, *, records: Records) -> AsyncIterator[ManagementService]:
    """The service on a port of its own, with the users ada and bob."""
    file = KeyFile(home / "keys.json")
    keys = {user: file.add(user) for user in ("ada", "bob")}
    authentication = Keys.open(home, host="127.0.0.1", environment={})
    checkpoints = CheckpointStore(home / "checkpoints", records=records)
    await checkpoints.prepare()
    futures = Futures.open(home / "futures")
    application = make_application(
        [
            client_routes(model={"model_name": "org/base"}),
            account_routes(records, keys=authentication),
            run_routes(records),
            session_list_routes(records),
            trace_routes(records, futures=futures, signer=authentication.signer),
            checkpoint_routes(checkpoints, repeats=Repeats()),
            download_routes(checkpoints, signer=authentication.signer),
            copy_routes(checkpoints),
        ]
    )
    guard = Guard(application, authenticate=authentication.authenticate, largest_body=1 << 20)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(guard, log_config=None, lifespan="off"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield ManagementService(
            records=records,
            checkpoints=checkpoints,
            futures=futures,
            url=f"http://127.0.0.1:{listener.getsockname()[1]}",
            keys=keys,
            home=home,
        )
    finally:
        server.should_exit = True
        await serving
        listener.close()
        await futures.close()
