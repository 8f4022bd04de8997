"""The whole service: its rooms, put together, started and stopped in the right order."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter
from filelock import FileLock, Timeout

from enginehouse.core.errors import ConfigurationError, StoreError, TinkerError
from enginehouse.core.system_errors import advice
from enginehouse.runtime.context import Context
from enginehouse.store.files import write_whole
from enginehouse.store.private import make_private
from enginehouse.tinker.application import current_user, make_application
from enginehouse.tinker.checkpoints import CheckpointStore
from enginehouse.tinker.configuration import TinkerConfig
from enginehouse.tinker.data import LoraSpec
from enginehouse.tinker.fair_slots import FairSlots
from enginehouse.tinker.future import SAMPLE
from enginehouse.tinker.futures import Futures
from enginehouse.tinker.guard import Guard
from enginehouse.tinker.heartbeats import Heartbeats
from enginehouse.tinker.keys import Keys
from enginehouse.tinker.limits import Limits
from enginehouse.tinker.logs import logging_to
from enginehouse.tinker.names import Names
from enginehouse.tinker.records.records import Records, sqlite_url
from enginehouse.tinker.routes.accounts import account_routes
from enginehouse.tinker.routes.checkpoints import checkpoint_routes
from enginehouse.tinker.routes.client import client_routes
from enginehouse.tinker.routes.copies import copy_routes
from enginehouse.tinker.routes.downloads import download_routes
from enginehouse.tinker.routes.futures import futures_routes
from enginehouse.tinker.routes.legacy import LegacySampler, legacy_routes
from enginehouse.tinker.routes.models import Models, model_routes
from enginehouse.tinker.routes.openai import openai_routes
from enginehouse.tinker.routes.operations import operation_routes
from enginehouse.tinker.routes.runs import run_routes
from enginehouse.tinker.routes.samplers import sampler_routes
from enginehouse.tinker.routes.sampling import sampling_routes
from enginehouse.tinker.routes.session_lists import session_list_routes
from enginehouse.tinker.routes.sessions import Sessions, session_routes
from enginehouse.tinker.routes.traces import trace_routes
from enginehouse.tinker.routes.training import training_routes
from enginehouse.tinker.sampling.base import SamplingEngine
from enginehouse.tinker.sampling_desk import SamplingDesk
from enginehouse.tinker.service_status import SampleLoad, ServiceStatus
from enginehouse.tinker.trainers.base import Trainer
from enginehouse.tinker.training_queue import TrainingQueue

logger = logging.getLogger(__name__)

LOG: Final = "service.jsonl"
OPERATOR_KEY: Final = "operator-key"
_LAPSE_INTERVAL: Final = 10.0  # seconds between looks for sessions that have lapsed
_ABANDONED: Final = timedelta(days=1)  # without a heartbeat, after which models are forgotten


@dataclass(frozen=True, kw_only=True)
class Rooms:
    """What the service is made of."""

    base_model: str
    keys: Keys
    records: Records
    checkpoints: CheckpointStore
    futures: Futures
    sessions: Sessions
    trainer: Trainer
    queue: TrainingQueue
    engine: SamplingEngine
    desk: SamplingDesk


class Service:
    """A running service, but for HTTP: `application` is to be served as long as it is open.

    `operator_key` opens GET /status. `notices` are said to each user at the beginning of a session.
    """

    def __init__(
        self, rooms: Rooms, *, largest_body: int, operator_key: str, notices: Sequence[str]
    ) -> None:
        self._rooms = rooms
        self._notices = tuple(notices)
        self._began = time.monotonic()
        operations = operation_routes(status=self.status, operator_key=operator_key)
        routers = [*_routers(rooms, notices), operations]
        self.application = Guard(
            make_application(routers),
            authenticate=rooms.keys.authenticate,
            largest_body=largest_body,
        )

    def status(self) -> ServiceStatus:
        """Everything that the operator may want to know, now."""
        rooms = self._rooms
        return ServiceStatus(
            base_model=rooms.base_model,
            uptime_seconds=time.monotonic() - self._began,
            notices=self._notices,
            queue=rooms.queue.status(),
            samples=tuple(
                SampleLoad(user=user, in_flight=in_flight, waiting=waiting)
                for user, in_flight, waiting in rooms.desk.load()
            ),
            sampling=rooms.engine.description,
            futures=len(rooms.futures.waiting()),
            polls=rooms.futures.polls,
            sessions=sum(1 for _ in rooms.sessions.heartbeats.alive()),
            sampled_tokens=rooms.desk.sampled_tokens,
            heartbeats=rooms.sessions.heartbeats.received,
            draining=self.application.draining,
        )

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 (how long jobs may begin)
        """Refuse new work, finish what can be finished in time, and save every model's state.

        What is left stays accepted, for the next service with the same home.
        """
        self.application.draining = True
        await asyncio.gather(self._rooms.queue.drain(timeout), self._rooms.desk.drain(timeout))
        self._rooms.futures.release()


@asynccontextmanager
async def open_service(
    config: TinkerConfig, context: Context, *, trainer: Trainer, engine: SamplingEngine
) -> AsyncIterator[Service]:
    """The service for the length of the block; what it had accepted before goes on at once.

    `trainer` has been started; it and `engine` outlive the block. Raises ConfigurationError and
    StoreError. An error that ends a part of the service cancels the block, and is raised.
    """
    home = config.folder(context.layout)
    async with AsyncExitStack() as stack:
        stack.enter_context(_held(home))
        rooms = await _open_rooms(config, home, context, trainer, engine, stack)
        service = Service(
            rooms,
            largest_body=config.largest_body,
            operator_key=_make_operator_key(home),
            notices=_notices(config, engine),
        )
        for future in rooms.futures.waiting():
            if future.kind == SAMPLE and future.take():
                rooms.desk.submit(future)
        async with _running_together(
            rooms.queue.run(), rooms.checkpoints.expire_regularly(), _end_abandoned(rooms)
        ):
            yield service


async def _open_rooms(
    config: TinkerConfig,
    home: Path,
    context: Context,
    trainer: Trainer,
    engine: SamplingEngine,
    stack: AsyncExitStack,
) -> Rooms:
    """Open what is stored, and make the rooms; `stack` closes them in reverse."""
    keys = Keys.open(home, host=config.host, operator_file=config.keys_file)
    records = await Records.open(config.database or sqlite_url(home / "records.sqlite"))
    stack.push_async_callback(records.close)
    checkpoints = CheckpointStore(home / "checkpoints", records=records)
    await checkpoints.prepare()
    futures = Futures.open(home / "futures")  # its lock belongs to this thread
    stack.push_async_callback(futures.close)
    slots = FairSlots(total=config.samples_in_flight, per_user=config.max_samples)
    desk = SamplingDesk(
        engine=engine, futures=futures, records=records, checkpoints=checkpoints, slots=slots
    )
    stack.push_async_callback(desk.close)
    queue = TrainingQueue(
        home / "models",
        trainer=trainer,
        futures=futures,
        records=records,
        checkpoints=checkpoints,
        limits=Limits(
            rank=config.max_lora_rank,
            adapters=config.max_adapters,
            request_tokens=config.max_batch_tokens,
            waiting_jobs=config.max_queued_jobs,
            kl_threshold=config.kl_threshold,
            train_unembed=config.train_unembed,
        ),
        notify=context.notify,
        on_sampler_saved=desk.saved,
    )
    heartbeats = Heartbeats(timeout=config.heartbeat_timeout)
    assert config.base_model is not None  # checked by the configuration
    return Rooms(
        base_model=config.base_model,
        keys=keys,
        records=records,
        checkpoints=checkpoints,
        futures=futures,
        sessions=Sessions(records=records, heartbeats=heartbeats),
        trainer=trainer,
        queue=queue,
        engine=engine,
        desk=desk,
    )


def _routers(rooms: Rooms, notices: Sequence[str]) -> list[APIRouter]:
    names = Names(base_model=rooms.base_model, records=rooms.records, desk=rooms.desk)
    legacy = LegacySampler(names=names, desk=rooms.desk, engine=rooms.engine)
    models = Models(records=rooms.records, futures=rooms.futures)
    info = rooms.trainer.info
    capabilities = {
        "model_name": rooms.base_model,
        "max_context_length": min(info.max_length, rooms.engine.max_length),
        "trainable": True,
        "sampleable": True,
    }

    def describe(spec: LoraSpec) -> Mapping[str, Any]:
        engine = rooms.engine.description
        sampled_by = engine.get("unembedding") if spec.train_unembed else None
        return {"sampled_by": sampled_by or engine["engine"]}

    return [
        client_routes(model=capabilities),
        session_routes(rooms.sessions, queue=rooms.queue, notice=" ".join(notices) or None),
        model_routes(
            models,
            sessions=rooms.sessions,
            futures=rooms.futures,
            queue=rooms.queue,
            base_model=rooms.base_model,
            info=info,
            describe=describe,
        ),
        training_routes(models, futures=rooms.futures, queue=rooms.queue),
        sampler_routes(rooms.sessions, desk=rooms.desk, base_model=rooms.base_model),
        sampling_routes(
            futures=rooms.futures, desk=rooms.desk, base_model=rooms.base_model, legacy=legacy
        ),
        legacy_routes(legacy),
        openai_routes(names=names, desk=rooms.desk, engine=rooms.engine),
        futures_routes(rooms.futures, user=current_user),
        run_routes(rooms.records),
        checkpoint_routes(rooms.checkpoints),
        download_routes(rooms.checkpoints, signer=rooms.keys.signer),
        copy_routes(rooms.checkpoints),
        session_list_routes(rooms.records),
        trace_routes(rooms.records, futures=rooms.futures, signer=rooms.keys.signer),
        account_routes(rooms.records, keys=rooms.keys),
    ]


def _notices(config: TinkerConfig, engine: SamplingEngine) -> list[str]:
    """What every user should know about this service."""
    if not config.train_unembed:
        return ["this service does not train the output layer: its operator switched that off"]
    unembedding = engine.description.get("unembedding")
    if not isinstance(unembedding, Mapping):
        return []
    other, why = unembedding["answered_by"], unembedding["why"]
    if other == engine.description["engine"]:
        return []
    return [f"adapters with an output layer (train_unembed) are sampled by {other}: {why}"]


@contextmanager
def _held(home: Path) -> Iterator[None]:
    """Hold the home and write the log there for the length of the block."""
    try:
        make_private(home)
        lock = FileLock(home / "lock", timeout=0, mode=0o600)
        with lock, logging_to(home / LOG):
            yield
    except Timeout:
        raise ConfigurationError(
            f"another Tinker service uses {home}",
            fix="stop it first, or give this one a folder of its own with --home",
        ) from None
    except OSError as error:
        raise StoreError(
            f"cannot use the folder {home}",
            why=error.strerror or str(error),
            fix=advice(error, otherwise="check its permissions, or choose another with --home"),
        ) from error


def _make_operator_key(home: Path) -> str:
    """A new key for this start, in a file that only the operator can read. Raises StoreError."""
    key = secrets.token_urlsafe(24)
    write_whole(home / OPERATOR_KEY, key.encode(), private=True)
    return key


@asynccontextmanager
async def _running_together(*parts: Any) -> AsyncIterator[None]:
    """Run the parts beside the block, and cancel them at its end; the first error ends it all."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(part) for part in parts]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _end_abandoned(rooms: Rooms) -> None:
    """Cancel the samples of sessions that have lapsed; forget the models of those long gone."""
    while True:
        await asyncio.sleep(_LAPSE_INTERVAL)
        lapsed = rooms.sessions.heartbeats.take_lapsed()
        if lapsed:
            cancelled = await rooms.desk.cancel_sessions(lapsed)
            logger.info("sessions lapsed", extra={"sessions": lapsed, "cancelled": cancelled})
        alive = {session.session_id for session in rooms.sessions.heartbeats.alive()}
        sessions = {model.model_id.partition(":train:")[0] for model in rooms.queue.status().models}
        for session_id in sessions - alive:
            if await _is_abandoned(session_id, rooms.records):
                rooms.queue.retire(session_id)


async def _is_abandoned(session_id: str, records: Records) -> bool:
    try:
        session = await records.session(session_id, user=None)
    except TinkerError:  # it was never recorded
        return True
    except StoreError as error:
        logger.warning("the records were not read", extra={"why": str(error)})
        return False
    return datetime.now(UTC) - session.last_heartbeat > _ABANDONED
