"""A stand-in for a Megatron server that trains: the contract of docs/tinker-megatron.md."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiohttp import web

from enginehouse.core.errors import TinkerError
from enginehouse.testing.fake_trainer import FakeTrainer
from enginehouse.tinker.trainers.megatron import INSTANCE_HEADER, PREFIX
from enginehouse.tinker.trainers.messages import (
    Call,
    Compute,
    Failure,
    Outcome,
    decode,
    encode,
)

_LARGEST = 2**30
_STALE = 409


class FakeMegatronTrainer:
    """The fake trainer behind HTTP, one call at a time. `trainer` is what computes.

    It says that it computes on `device`.
    """

    def __init__(self, trainer: FakeTrainer | None = None, *, device: str = "cuda") -> None:
        self._device = device
        self.trainer = trainer or FakeTrainer()
        self._instance = ""
        self._turn = asyncio.Lock()

    def restart(self) -> None:
        """Forget everything, as a server that was killed and started again."""
        self.trainer.kill()
        self._instance = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Its address, on a free port of this machine, for the length of the block."""
        application = web.Application(client_max_size=_LARGEST)
        application.add_routes([web.post(f"{PREFIX}/{{call}}", self._answer)])
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            host, port = runner.addresses[0][:2]
            yield f"http://{host}:{port}"
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        async with self._turn:
            if request.match_info["call"] == "start":
                return await self._start()
            if not self._instance or request.headers.get(INSTANCE_HEADER) != self._instance:
                return web.Response(status=_STALE, text="the server has started again")
            reply = await self._reply(decode(await request.read(), kind=Call))
            return web.Response(body=encode(reply), content_type="application/msgpack")

    async def _start(self) -> web.Response:
        self.trainer.kill()
        await self.trainer.start()
        self._instance = secrets.token_hex(8)
        info = msgspec.to_builtins(self.trainer.info) | {"instance": self._instance}
        return web.json_response(info | {"batches": False, "device": self._device})

    async def _reply(self, call: Call) -> Mapping[str, Any]:
        fields = {name: getattr(call, name) for name in call.__struct_fields__}
        try:
            value = await getattr(self.trainer, str(call.__struct_config__.tag))(**fields)
        except TinkerError as error:
            return {"value": None, "failure": _failure(error)}
        if isinstance(call, Compute):
            value = [
                Outcome(failure=_failure(result))
                if isinstance(result, TinkerError)
                else Outcome(result=result)
                for result in value
            ]
        return {"value": value, "failure": None}


def _failure(error: TinkerError) -> Failure:
    return Failure(message=error.message, category=error.category, why=error.why, fix=error.fix)
