"""The whole service: its rooms, put together, started and stopped in the right order."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter

from enginehouse.core.errors import EnginehouseError, TinkerError
from enginehouse.runtime.context import Context
from enginehouse.store.files import write_whole
from enginehouse.tinker.application import make_application
from enginehouse.tinker.configuration import TinkerConfig
from enginehouse.tinker.data import LoraSpec
from enginehouse.tinker.fair_slots import FairSlots
from enginehouse.tinker.future import SAMPLE
from enginehouse.tinker.guard import Guard
from enginehouse.tinker.heartbeats import Heartbeats
from enginehouse.tinker.limits import Limits
from enginehouse.tinker.names import Names
from enginehouse.tinker.records.records import Records
from enginehouse.tinker.repeats import Repeats
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
from enginehouse.tinker.sampler_weights import SamplerWeights
from enginehouse.tinker.sampling.base import SamplingEngine
from enginehouse.tinker.sampling_desk import SamplingDesk
from enginehouse.tinker.service_status import ServiceStatus
from enginehouse.tinker.stores import Stores, note_base_model
from enginehouse.tinker.trainers.base import Trainer
from enginehouse.tinker.training_queue import TrainingQueue

logger = logging.getLogger(__name__)

OPERATOR_KEY: Final = "operator-key"
_ABANDONED: Final = timedelta(days=1)  # without a heartbeat while the service runs


@dataclass(frozen=True, kw_only=True)
class Rooms:
    """What the service is made of."""

    base_model: str
    stores: Stores
    sessions: Sessions
    trainer: Trainer
    queue: TrainingQueue
    engine: SamplingEngine
    desk: SamplingDesk
    samplers: SamplerWeights


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
            authenticate=rooms.stores.keys.authenticate,
            largest_body=largest_body,
        )

    def status(self) -> ServiceStatus:
        """Everything that the operator may want to know, now."""
        rooms = self._rooms
        return ServiceStatus(
            base_model=rooms.base_model,
            uptime_seconds=time.monotonic() - self._began,
            notices=(*self._notices, *filter(None, [rooms.stores.checkpoints.warning])),
            queue=rooms.queue.status(),
            samples=rooms.desk.load(),
            sampling=rooms.engine.description,
            futures=len(rooms.stores.futures.waiting()),
            polls=rooms.stores.futures.polls,
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
        self._rooms.stores.futures.release()


@asynccontextmanager
async def open_service(
    config: TinkerConfig,
    context: Context,
    *,
    stores: Stores,
    trainer: Trainer,
    engine: SamplingEngine,
    tidy_interval: float = 10.0,
) -> AsyncIterator[Service]:
    """The service for the length of the block; what it had accepted before goes on at once.

    `trainer` has been started. What is over is tidied up every `tidy_interval` seconds. Raises
    StoreError. An error that ends a part of the service cancels the block, and is raised.
    """
    rooms = _make_rooms(config, context, stores=stores, trainer=trainer, engine=engine)
    note_base_model(stores.home, rooms.base_model)
    notices = _notices(config, engine)
    for notice in notices:
        logger.warning(notice)
    service = Service(
        rooms,
        largest_body=config.largest_body,
        operator_key=_make_operator_key(stores.home),
        notices=notices,
    )
    for future in stores.futures.waiting():
        if future.kind == SAMPLE and future.take():
            rooms.desk.submit(future)
    try:
        async with _running_together(
            rooms.queue.run(),
            stores.checkpoints.expire_regularly(),
            _tidy_regularly(rooms, tidy_interval),
        ):
            yield service
    finally:
        await rooms.desk.close()


def _make_rooms(
    config: TinkerConfig,
    context: Context,
    *,
    stores: Stores,
    trainer: Trainer,
    engine: SamplingEngine,
) -> Rooms:
    samplers = SamplerWeights(records=stores.records, checkpoints=stores.checkpoints)
    desk = SamplingDesk(
        engine=engine,
        futures=stores.futures,
        weights=samplers,
        slots=FairSlots(total=config.samples_in_flight, per_user=config.max_samples),
        most_waiting=config.max_queued_samples,
    )
    queue = TrainingQueue(
        stores.home / "models",
        trainer=trainer,
        futures=stores.futures,
        records=stores.records,
        checkpoints=stores.checkpoints,
        limits=Limits(
            sequence_tokens=config.max_model_len,
            rank=config.max_lora_rank,
            adapters=config.max_adapters,
            request_tokens=config.max_batch_tokens,
            resident=config.max_resident,
            waiting_jobs=config.max_queued_jobs,
            kl_threshold=config.kl_threshold,
            train_unembed=config.train_unembed,
            snapshot_ttl=config.snapshot_ttl,
        ),
        notify=context.notify,
        on_sampler_saved=desk.saved,
    )
    heartbeats = Heartbeats(timeout=config.heartbeat_timeout)
    assert config.base_model is not None  # checked by the configuration
    return Rooms(
        base_model=config.base_model,
        stores=stores,
        sessions=Sessions(records=stores.records, heartbeats=heartbeats),
        trainer=trainer,
        queue=queue,
        engine=engine,
        desk=desk,
        samplers=samplers,
    )


def _routers(rooms: Rooms, notices: Sequence[str]) -> list[APIRouter]:
    stores = rooms.stores
    names = Names(base_model=rooms.base_model, records=stores.records, samplers=rooms.samplers)
    legacy = LegacySampler(names=names, desk=rooms.desk, engine=rooms.engine)
    models = Models(records=stores.records, futures=stores.futures)
    repeats = Repeats()
    notice = " ".join(notices) or None
    info = rooms.trainer.info
    capabilities = {
        "model_name": rooms.base_model,
        "max_context_length": min(info.max_length, rooms.engine.max_length),
        "trainable": True,
        "sampleable": True,
    }

    def describe(spec: LoraSpec) -> Mapping[str, Any]:
        engine = rooms.engine.description
        sampled_by, unembedding = engine["engine"], engine.get("unembedding")
        if spec.train_unembed and isinstance(unembedding, Mapping):
            sampled_by = unembedding["answered_by"]
        return {
            "train_attn": spec.train_attn,
            "train_mlp": spec.train_mlp,
            "train_unembed": spec.train_unembed,
            "sampled_by": sampled_by,
            "note": notice,
        }

    return [
        client_routes(model=capabilities),
        session_routes(rooms.sessions, queue=rooms.queue, notice=notice),
        model_routes(
            models,
            sessions=rooms.sessions,
            futures=stores.futures,
            queue=rooms.queue,
            base_model=rooms.base_model,
            info=info,
            describe=describe,
        ),
        training_routes(models, futures=stores.futures, queue=rooms.queue),
        sampler_routes(
            rooms.sessions,
            samplers=rooms.samplers,
            base_model=rooms.base_model,
            repeats=repeats,
        ),
        sampling_routes(
            futures=stores.futures,
            desk=rooms.desk,
            samplers=rooms.samplers,
            base_model=rooms.base_model,
            legacy=legacy,
            repeats=repeats,
        ),
        legacy_routes(legacy, repeats=repeats),
        openai_routes(names=names, desk=rooms.desk, engine=rooms.engine),
        futures_routes(stores.futures),
        run_routes(stores.records),
        checkpoint_routes(stores.checkpoints, repeats=repeats),
        download_routes(stores.checkpoints, signer=stores.keys.signer),
        copy_routes(stores.checkpoints),
        session_list_routes(stores.records),
        trace_routes(stores.records, futures=stores.futures, signer=stores.keys.signer),
        account_routes(stores.records, keys=stores.keys),
    ]


def _notices(config: TinkerConfig, engine: SamplingEngine) -> list[str]:
    """What every user should know about this service."""
    if not config.train_unembed:
        return ["this service does not train the output layer: its operator switched that off"]
    unembedding = engine.description.get("unembedding")
    if not isinstance(unembedding, Mapping):
        return []
    main, why = engine.description["engine"], unembedding["why"]
    whose = "adapters with an output layer (train_unembed)"
    if unembedding["answered_by"] is None:
        return [f"{whose} are not sampled: {why}"]
    if unembedding["answered_by"] != main:
        return [f"{whose} are sampled by {unembedding['answered_by']}: {why}"]
    if unembedding["prompts_scored_by"] != main:
        return [f"prompts are scored by {unembedding['prompts_scored_by']} for {whose}: {why}"]
    return []


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


async def _tidy_regularly(rooms: Rooms, interval: float) -> None:
    """Call `_tidy` every so many seconds, until cancelled; errors are logged."""
    began = datetime.now(UTC)
    while True:
        await asyncio.sleep(interval)
        try:
            await _tidy(rooms, began=began)
        except EnginehouseError as error:
            logger.warning("what is over was not tidied up", extra={"why": str(error)})


async def _tidy(rooms: Rooms, *, began: datetime) -> None:
    """Cancel the samples of sessions that have lapsed; forget what was deleted or abandoned."""
    lapsed = rooms.sessions.heartbeats.take_lapsed()
    if lapsed:
        cancelled = await rooms.desk.cancel_sessions(lapsed)
        logger.info("sessions lapsed", extra={"sessions": lapsed, "cancelled": cancelled})
    alive = {session.session_id for session in rooms.sessions.heartbeats.alive()}
    models = rooms.queue.status().models
    for session_id in {model.model_id.partition(":train:")[0] for model in models} - alive:
        if await is_abandoned(session_id, rooms.stores.records, began=began):
            rooms.queue.retire(session_id)
    await rooms.desk.forget_deleted()


async def is_abandoned(session_id: str, records: Records, *, began: datetime) -> bool:
    """Whether nobody has been heard of for a day; while the service was down, nobody could be."""
    try:
        session = await records.session(session_id, user=None)
    except TinkerError:  # it was never recorded
        return True
    return datetime.now(UTC) - max(session.last_heartbeat, began) > _ABANDONED
