"""Which weights a sampling session, a checkpoint or a model stands for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.checkpoints import CheckpointStore
from enginehouse.tinker.records.entries import CheckpointRecord, SamplingSessionRecord
from enginehouse.tinker.records.records import Records
from enginehouse.tinker.sampling.base import Weights

BASE: Final = Weights(key="base")


class SamplerWeights:
    """The weights of sampling sessions, in memory once they were asked for.

    A sampling session's weights never change, except that one which follows a model has the newest
    weights which that model saved.
    """

    def __init__(self, *, records: Records, checkpoints: CheckpointStore) -> None:
        self._records = records
        self._checkpoints = checkpoints
        self._samplers: dict[str, SamplingSessionRecord] = {}
        self._snapshots: dict[str, Weights] = {}
        self._newest: dict[str, Weights] = {}
        self._used: dict[str, Weights] = {}

    async def sampler(self, sampling_session_id: str, *, user: str) -> SamplingSessionRecord:
        """A sampling session of the user. Raises TinkerError (404)."""
        known = self._samplers.get(sampling_session_id)
        if known is None or known.user != user:
            known = await self._records.sampling_session(sampling_session_id, user=user)
            self._samplers[sampling_session_id] = known
        return known

    async def of_sampler(self, sampling_session_id: str, *, user: str) -> Weights:
        """What a sampling session samples from now. Raises TinkerError (404)."""
        sampler = await self.sampler(sampling_session_id, user=user)
        if sampler.follows is not None:
            return await self._newest_of(sampler.follows)
        if sampler.checkpoint is None:
            return BASE
        weights = self._snapshots.get(sampling_session_id)
        if weights is None or not _is_there(weights):
            checkpoint = await self._records.checkpoint(sampler.checkpoint, user=user)
            if checkpoint.created > sampler.created:
                raise TinkerError(
                    f"the weights of {sampling_session_id} were deleted",
                    why=f"other weights were saved as {checkpoint.path} afterwards",
                    fix="make a new sampling client",
                    status=404,
                )
            weights = self.of(checkpoint)
            if checkpoint.user == user:  # others' may be unpublished at any time
                self._snapshots[sampling_session_id] = weights
        return weights

    async def of_path(self, path: str, *, user: str) -> Weights:
        """A checkpoint's, of the user or published. Raises TinkerError (404, 400)."""
        return self.of(await self._records.checkpoint(path, user=user))

    def of(self, checkpoint: CheckpointRecord) -> Weights:
        """A checkpoint's. Raises TinkerError if it was made for something else, or is gone."""
        if checkpoint.kind != "sampler":
            raise TinkerError(
                f"{checkpoint.path} cannot be sampled from: it was not saved for that",
                fix="save it with save_weights_for_sampler",
            )
        weights = Weights(
            key=checkpoint.folder,  # a path can be saved again when its checkpoint was deleted
            folder=self._checkpoints.folder(checkpoint),
            unembed=checkpoint.unembed,
            owner=checkpoint.user,
        )
        self._used[weights.key] = weights
        return weights

    def saved(self, checkpoint: CheckpointRecord) -> Weights:
        """Note that a model saved these for sampling, and return them."""
        weights = self._newest[checkpoint.model_id] = self.of(checkpoint)
        return weights

    def forget_sessions(self, session_ids: Collection[str]) -> None:
        """Keep nothing in memory of sampling sessions of these sessions."""
        for name in [name for name in self._samplers if session_of(name) in session_ids]:
            del self._samplers[name]
            self._snapshots.pop(name, None)
        for model_id in list(self._newest):
            if model_id.partition(":train:")[0] in session_ids:
                del self._newest[model_id]

    def take_deleted(self) -> list[Weights]:
        """Weights that were used, and whose checkpoints are gone since; each is given once."""
        deleted = [weights for weights in self._used.values() if not _is_there(weights)]
        for weights in deleted:
            del self._used[weights.key]
        return deleted

    async def _newest_of(self, model_id: str) -> Weights:
        weights = self._newest.get(model_id)
        if weights is None or not _is_there(weights):
            # saved before the service was restarted, or deleted
            last = await self._records.last_checkpoints([model_id], user=None)
            if (model_id, "sampler") not in last:
                raise TinkerError(
                    f"no weights of {model_id} are left to sample from",
                    fix="save them again: save_weights_and_get_sampling_client()",
                    status=404,
                )
            weights = self._newest[model_id] = self.of(last[model_id, "sampler"])
        return weights


def session_of(sampling_session_id: str) -> str:
    """The session that a sampling session belongs to."""
    return sampling_session_id.rpartition(":sample:")[0]


def _is_there(weights: Weights) -> bool:
    return weights.folder is not None and weights.folder.exists()
