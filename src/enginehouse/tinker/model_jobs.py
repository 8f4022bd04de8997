"""What the jobs of a model do, but for its forward and backward passes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.bodies import parse_json
from enginehouse.tinker.checkpoint_paths import CheckpointPath
from enginehouse.tinker.checkpoints import CheckpointStore
from enginehouse.tinker.data import LoraSpec
from enginehouse.tinker.job_bodies import (
    CreateModel,
    LoadWeights,
    OptimStep,
    SaveWeights,
    SaveWeightsExternal,
    SaveWeightsForSampler,
)
from enginehouse.tinker.limits import Limits
from enginehouse.tinker.order import Job
from enginehouse.tinker.records.entries import (
    UNNAMED,
    CheckpointKind,
    CheckpointRecord,
    ModelRecord,
    SamplingSessionRecord,
)
from enginehouse.tinker.records.records import Records
from enginehouse.tinker.residency import Model, Residency
from enginehouse.tinker.trainers.base import Trainer

_GRACE = timedelta(hours=1)

SamplerSaved = Callable[[CheckpointRecord], Awaitable[None]]


class ModelJobs:
    """Does one job at a time, and returns the answer as JSON.

    Everything may be done again: after a restart, the same job finds what it left. Every method
    raises TinkerError for a job that fails, and ServerGoneError when the trainer ends.
    """

    def __init__(
        self,
        *,
        trainer: Trainer,
        residency: Residency,
        records: Records,
        checkpoints: CheckpointStore,
        limits: Limits,
        on_sampler_saved: SamplerSaved | None,
    ) -> None:
        self._trainer = trainer
        self._residency = residency
        self._records = records
        self._checkpoints = checkpoints
        self._limits = limits
        self._on_sampler_saved = on_sampler_saved

    async def run(self, model: Model, job: Job) -> bytes:
        """Do a job of any kind but forward_backward."""
        if job.kind == "create_model":
            answer = await self._create(model, job)
        elif job.kind == "load_weights":
            answer = await self._load(model, job)
        elif job.kind == "optim_step":
            answer = await self._optim_step(model, job)
        elif job.kind == "save_weights":
            answer = await self._save_weights(model, job)
        elif job.kind == "save_weights_for_sampler":
            answer = await self._save_for_sampler(model, job)
        elif job.kind == "save_weights_external":
            answer = await self._save_external(model, job)
        else:
            raise TinkerError(f"the training queue has no jobs of the kind {job.kind!r}")
        return json.dumps({**answer, "type": job.kind}).encode()

    async def repeat(self, model: Model, job: Job) -> None:
        """Have the effect again that a job had on its model, and no other."""
        if job.kind == "create_model":
            await self._make(model, job, await parse_json(job.future.body, CreateModel))
        elif job.kind == "load_weights":
            await self._load_into(model, job, await parse_json(job.future.body, LoadWeights))
        elif job.kind == "optim_step":
            await self._optim_step(model, job)

    async def end_snapshots(self, model: Model) -> None:
        """Have the weights expire soon that were saved for samplers without a name.

        For a model whose session has ended: those samplers were its session's. Raises StoreError.
        """
        page = await self._records.checkpoints(model.user, model_id=model.model_id)
        for checkpoint in page.entries:
            unnamed = checkpoint.kind == "sampler" and checkpoint.name.startswith(UNNAMED)
            if unnamed and not checkpoint.public and checkpoint.expires_at is None:
                soon = datetime.now(UTC) + _GRACE
                await self._records.set_expiry(checkpoint.path, user=model.user, expires_at=soon)

    async def _create(self, model: Model, job: Job) -> Mapping[str, Any]:
        body = await parse_json(job.future.body, CreateModel)
        self._require_place(model)
        spec = await self._make(model, job, body)
        await self._record(model, body, spec, base_model=body.base_model)
        return {"model_id": model.model_id}

    async def _make(self, model: Model, job: Job, body: CreateModel) -> LoraSpec:
        spec = self._allowed(body.spec(seed=_seed(job)))
        await self._residency.make_room()
        await self._trainer.create(model.model_id, spec)
        model.resident = True
        model.spec = spec
        return spec

    async def _load(self, model: Model, job: Job) -> Mapping[str, Any]:
        body = await parse_json(job.future.body, LoadWeights)
        if body.weights_access_token is not None:
            raise TinkerError(
                "weights_access_token is not supported by this service",
                fix="publish the checkpoint: then every user of this service can load it",
            )
        if model.spec is None:
            self._require_place(model)
        checkpoint = await self._load_into(model, job, body)
        if job.seq_id == 0 and model.spec is not None:
            await self._record(model, body, model.spec, base_model=checkpoint.base_model)
        # The checkpoint may be deleted or replaced before this job would have to be repeated.
        if not await self._residency.save(model, applied=job.seq_id):
            raise TinkerError(
                "the loaded weights were not accepted, as the model's state cannot be saved",
                fix="tell the operator of the service to make room on its disk",
                category="server",
            )
        return {"path": body.path, "model_id": model.model_id}

    async def _load_into(self, model: Model, job: Job, body: LoadWeights) -> CheckpointRecord:
        path = str(CheckpointPath.parse(body.path))
        checkpoint = await self._records.checkpoint(path, user=job.future.user)
        if checkpoint.kind == "external":
            raise TinkerError(
                f"{path} was saved for other software, and cannot be trained on",
                fix="save a checkpoint with save_weights (save_state in the SDK)",
            )
        if body.optimizer and checkpoint.kind != "training":
            raise TinkerError(
                f"{path} has no optimizer state, as it was saved for a sampler",
                fix="load it without its optimizer, or load one that save_weights saved",
            )
        if body.base_model not in (None, checkpoint.base_model):
            raise TinkerError(
                f"{path} is an adapter of {checkpoint.base_model}, not of {body.base_model}"
            )
        spec = checkpoint.spec
        if self._allowed(spec) != spec:
            raise TinkerError(f"{path} trains the unembedding, which this service does not")
        if model.spec is not None and _shape(spec) != _shape(model.spec):
            raise TinkerError(
                f"{path} does not fit this model",
                why=f"it has {_shape(spec)}, and the model {_shape(model.spec)}",
                fix="create a model from it (create_training_client_from_state in the SDK)",
            )
        if not model.resident:
            await self._residency.make_room()
        model.spec = await self._trainer.load(
            model.model_id,
            self._checkpoints.folder(checkpoint),
            optimizer=body.optimizer,
            gradients=False,
        )
        model.resident = True
        model.pending = 0
        model.broken = None
        return checkpoint

    async def _optim_step(self, model: Model, job: Job) -> Mapping[str, Any]:
        body = await parse_json(job.future.body, OptimStep)
        step = body.adam_params.step()
        if model.broken is not None:
            raise TinkerError(
                f"no step was taken, since a part of its batch failed: {model.broken.message}",
                fix="the batch's gradients were dropped: send the whole batch again",
                category=model.broken.category,
            )
        if not model.pending:
            raise TinkerError(
                "there are no gradients to apply", fix="send a forward_backward before optim_step"
            )
        metrics = await self._trainer.optim_step(model.model_id, step)
        model.pending = 0
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        return {"metrics": finite}  # JSON has no others

    async def _save_weights(self, model: Model, job: Job) -> Mapping[str, Any]:
        body = await parse_json(job.future.body, SaveWeights)
        checkpoint = await self._save(
            model,
            job,
            kind="training",
            name=body.path,
            overwrite=body.overwrite,
            ttl_seconds=body.ttl_seconds,
            user_metadata=body.user_metadata,
        )
        return {"path": checkpoint.path}

    async def _save_for_sampler(self, model: Model, job: Job) -> Mapping[str, Any]:
        body = await parse_json(job.future.body, SaveWeightsForSampler)
        number = body.sampling_session_seq_id
        if (body.path is None) == (number is None):
            raise TinkerError(
                "save_weights_for_sampler needs either a path or a sampling_session_seq_id"
            )
        if body.kind == "inflight" and body.path is not None:
            raise TinkerError("inflight weights have no path of their own: leave path out")
        nameless = body.path is None and body.ttl_seconds is None
        checkpoint = await self._save(
            model,
            job,
            kind="sampler",
            name=body.path,
            ttl_seconds=self._limits.snapshot_ttl if nameless else body.ttl_seconds,
            user_metadata=body.user_metadata,
        )
        if self._on_sampler_saved is not None:
            await self._on_sampler_saved(checkpoint)
        if number is None:
            return {"path": checkpoint.path}
        session_id = model.model_id.partition(":train:")[0]
        sampler = SamplingSessionRecord(
            sampling_session_id=f"{session_id}:sample:{number}",
            session_id=session_id,
            user=job.future.user,
            base_model=checkpoint.base_model,
            created=datetime.now(UTC),
            checkpoint=checkpoint.path,
            follows=model.model_id if body.kind == "inflight" else None,
        )
        await self._records.add_sampling_session(sampler)
        return {"sampling_session_id": sampler.sampling_session_id}

    async def _save_external(self, model: Model, job: Job) -> Mapping[str, Any]:
        body = await parse_json(job.future.body, SaveWeightsExternal)
        if body.age_encryption_recipients:
            raise TinkerError(
                "age_encryption_recipients: this service does not encrypt exported weights",
                fix="leave it out, and encrypt the files after the download",
            )
        checkpoint = await self._save(
            model, job, kind="external", name=body.path, ttl_seconds=body.ttl_seconds
        )
        return {"path": checkpoint.path, "size_bytes": checkpoint.size_bytes}

    async def _save(
        self,
        model: Model,
        job: Job,
        *,
        kind: CheckpointKind,
        name: str | None,
        overwrite: bool = False,
        ttl_seconds: int | None = None,
        user_metadata: Mapping[str, str] | None = None,
    ) -> CheckpointRecord:
        """Save a checkpoint, once: a job that is run again finds what it saved."""
        request_id = job.future.request_id
        saved = await self._records.checkpoint_saved_by(request_id)
        if saved is not None:
            return saved
        if name is not None and name.startswith(UNNAMED):
            raise TinkerError(
                f"the name of a checkpoint cannot begin with {UNNAMED!r}", fix="choose another"
            )
        path = CheckpointPath(model.model_id, kind, name or f"{UNNAMED}{job.seq_id:06d}")
        record = await self._records.model(model.model_id, user=None)
        async with self._checkpoints.reserve(
            path, request_id=request_id, overwrite=overwrite
        ) as place:
            await self._trainer.save(model.model_id, place.folder, state=kind == "training")
            return await place.commit(record, ttl_seconds=ttl_seconds, user_metadata=user_metadata)

    async def _record(
        self, model: Model, body: CreateModel | LoadWeights, spec: LoraSpec, *, base_model: str
    ) -> None:
        now = datetime.now(UTC)
        await self._records.add_model(
            ModelRecord(
                model_id=model.model_id,
                session_id=model.model_id.partition(":train:")[0],
                user=model.user,
                base_model=base_model,
                spec=spec,
                created=now,
                last_request=now,
                user_metadata=body.user_metadata or {},
            )
        )
        if not (await self._records.model(model.model_id, user=None)).trainable:
            raise TinkerError(
                f"{model.model_id} is the copy of a checkpoint, and cannot be trained",
                fix="create a model from the copy, with a model_seq_id of its own",
            )

    def _require_place(self, model: Model) -> None:
        others = sum(
            other.user == model.user and other.lost is None and other is not model
            for other in self._residency
        )
        if others >= self._limits.adapters:
            raise TinkerError(
                f"you are training {others} models, and {self._limits.adapters} are the most here",
                fix="end the sessions of those that are done",
            )

    def _allowed(self, spec: LoraSpec) -> LoraSpec:
        """The spec as this service trains it. Raises TinkerError."""
        if spec.rank > self._limits.rank:
            raise TinkerError(
                f"the rank {spec.rank} is above this service's limit of {self._limits.rank}",
                fix=f"choose a rank of at most {self._limits.rank}",
            )
        spec = replace(spec, train_unembed=spec.train_unembed and self._limits.train_unembed)
        if not (spec.train_attn or spec.train_mlp or spec.train_unembed):
            raise TinkerError(
                "nothing of the model would be trained",
                why="train_attn and train_mlp are off"
                + (
                    "" if self._limits.train_unembed else ", and this service trains no unembedding"
                ),
                fix="switch one of them on",
            )
        return spec


def _seed(job: Job) -> int:
    """The seed of a model whose owner chose none: the same when the job is done again."""
    digest = hashlib.sha256(job.future.request_id.encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _shape(spec: LoraSpec) -> str:
    parts = {name.removeprefix("train_"): on for name, on in asdict(spec).items() if on is True}
    return f"rank {spec.rank} in {', '.join(parts)}"
