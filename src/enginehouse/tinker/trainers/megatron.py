"""Training by a Megatron server, which somebody else runs; docs/tinker-megatron.md is the contract.

Everything is asked one after another. Nothing is ever asked twice: whenever an answer is missing,
what the server has in memory counts as lost, and `start` has it begin from nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from enginehouse.client.bodies import read_body
from enginehouse.client.transport import normal_base_url
from enginehouse.core.errors import (
    ServerGoneError,
    StartError,
    TinkerError,
    WireError,
)
from enginehouse.servers.sessions import below, open_session
from enginehouse.tinker.data import AdamStep, LoraSpec, LossRequest, LossResult
from enginehouse.tinker.trainers.base import TrainerInfo
from enginehouse.tinker.trainers.messages import (
    Call,
    Compute,
    Create,
    DropGradients,
    Load,
    OptimStep,
    Outcome,
    Reply,
    Save,
    Unload,
    decode,
    encode,
)

INSTANCE_HEADER = "Trainer-Instance"
PREFIX = "/trainer/v1"
_CONNECT = 10.0  # seconds
_START = 600.0
_CALL = 3600.0
_CONTRACT = "see docs/tinker-megatron.md for what it must answer"


class _Started(msgspec.Struct, frozen=True):
    """What `start` answers beside the fields of TrainerInfo: the name of its empty memory."""

    instance: str


class MegatronTrainer:
    """See Trainer. The server is not ours: `close` leaves it running."""

    def __init__(self, url: str, *, base_model: str) -> None:
        """`base_model` is what the server must train. Raises ConfigurationError for a wrong URL."""
        self._url = normal_base_url(url)
        self._base_model = base_model
        self._info: TrainerInfo | None = None
        self._instance = ""
        self._end: str | None = "it has not been started"

    @property
    def info(self) -> TrainerInfo:
        """See Trainer."""
        assert self._info is not None, "known once it has started"
        return self._info

    async def start(self) -> None:
        """See Trainer. The server forgets what it had in memory."""
        if self._end is None:
            return
        try:
            status, body = await self._post("start", b"", timeout=_START)
        except (aiohttp.ClientError, TimeoutError, OSError, WireError) as error:
            raise StartError(
                f"no Megatron server answers at {self._url}",
                why=_words(error),
                fix="start it, or correct MEGATRON_SERVER_URL; --trainer hf trains without it",
            ) from error
        try:
            info = msgspec.json.decode(body, type=TrainerInfo) if status == 200 else None
            instance = msgspec.json.decode(body, type=_Started).instance if info else ""
        except msgspec.MsgspecError as error:
            raise StartError(
                f"the server at {self._url} answers something else than a trainer",
                why=str(error),
                fix=_CONTRACT,
            ) from error
        if info is None:
            raise StartError(
                f"the server at {self._url} does not train",
                why=f"{PREFIX}/start answered {status}: Megatron's own text generation server "
                "only generates",
                fix=f"{_CONTRACT}; --trainer hf trains without it",
            )
        if info.device.startswith("cpu"):
            raise StartError(
                f"the server at {self._url} has no GPU: it computes on {info.device}",
                why="Megatron trains on GPUs only",
                fix="start it where there is one; --trainer hf trains on CPUs",
            )
        if info.base_model != self._base_model:
            raise StartError(
                f"the server at {self._url} trains {info.base_model}, not {self._base_model}",
                fix="start the service with that --base-model, or the server with the other model",
            )
        self._info, self._instance, self._end = info, instance, None

    async def create(self, model_id: str, spec: LoraSpec) -> None:
        """See Trainer."""
        await self._ask(Create(model_id=model_id, spec=spec))

    async def compute(self, requests: Sequence[LossRequest]) -> list[LossResult | TinkerError]:
        """See Trainer. One request after another."""
        results: list[LossResult | TinkerError] = []
        for request in requests:
            outcomes = await self._ask(Compute(requests=(request,)), kind=list[Outcome])
            results += [outcome.value() for outcome in outcomes]
        return results

    async def optim_step(self, model_id: str, step: AdamStep) -> Mapping[str, float]:
        """See Trainer."""
        call = OptimStep(model_id=model_id, step=step)
        metrics: dict[str, float] = await self._ask(call, kind=dict[str, float])
        return metrics

    async def drop_gradients(self, model_id: str) -> None:
        """See Trainer."""
        await self._ask(DropGradients(model_id=model_id))

    async def save(self, model_id: str, folder: Path, *, state: bool) -> None:
        """See Trainer. The server writes the folder, so it must see the same file system."""
        await self._ask(Save(model_id=model_id, folder=folder, state=state))
        if not folder.is_dir():  # noqa: ASYNC240 (one look)
            raise TinkerError(
                f"the Megatron server has saved {folder}, and it is not there",
                category="server",
                status=500,
                why="it does not see the file system of this machine",
                fix="give both the same folder: ENGINEHOUSE_HOME on a shared file system",
            )

    async def load(
        self, model_id: str, folder: Path, *, optimizer: bool, gradients: bool
    ) -> LoraSpec:
        """See Trainer. The server reads the folder, so it must see the same file system."""
        call = Load(model_id=model_id, folder=folder, optimizer=optimizer, gradients=gradients)
        spec: LoraSpec = await self._ask(call, kind=LoraSpec)
        return spec

    async def unload(self, model_id: str) -> None:
        """See Trainer."""
        await self._ask(Unload(model_id=model_id))

    async def close(self) -> None:
        """See Trainer. What the server has in memory stays there until the next start."""
        self._end = "it was closed"

    async def _ask(self, call: Call, *, kind: Any = Any) -> Any:
        if self._end is not None:
            raise ServerGoneError("the Megatron server cannot be asked", why=self._end)
        name = str(call.__struct_config__.tag)
        self._end = "an answer was not waited for"  # unless it is here in the end
        try:
            status, body = await self._post(name, encode(call), timeout=_CALL)
            reply = decode(body, kind=Reply) if status == 200 else None
            value = decode(reply.value, kind=kind) if reply and reply.failure is None else None
        except (aiohttp.ClientError, TimeoutError, OSError, WireError) as error:
            raise self._gone(f"{name} was not answered: {_words(error)}") from error
        except (msgspec.MsgspecError, ValueError) as error:
            raise self._gone(f"the answer to {name} cannot be read: {error}") from error
        if reply is None:
            text = body[:300].decode(errors="replace").strip()
            raise self._gone(f"{name} was answered with {status}: {text}")
        self._end = None
        if reply.failure is not None:
            raise reply.failure.error()
        return value

    def _gone(self, why: str) -> ServerGoneError:
        self._end = why
        return ServerGoneError(
            f"the Megatron server at {self._url} failed", why=why, fix="look at its log"
        )

    async def _post(self, name: str, body: bytes, *, timeout: float) -> tuple[int, bytes]:  # noqa: ASYNC109
        headers = {"Content-Type": "application/msgpack", INSTANCE_HEADER: self._instance}
        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=_CONNECT)
        # A connection for each call: one that was kept may have been closed by the server.
        async with (
            open_session(self._url) as session,
            session.post(
                below(f"{PREFIX}/{name}"), data=body, headers=headers, timeout=limits
            ) as reply,
        ):
            return reply.status, await read_body(reply)


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
