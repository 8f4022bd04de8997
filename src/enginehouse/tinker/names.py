"""What a name means to requests that bring one: the base model, a checkpoint, an alias, a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.records.entries import CheckpointRecord
from enginehouse.tinker.records.records import Records
from enginehouse.tinker.sampling.base import Weights
from enginehouse.tinker.sampling_desk import BASE, SamplingDesk

ALIAS = "alias"
"""The key of a checkpoint's user_metadata by which its owner names it."""


@dataclass(frozen=True, kw_only=True)
class Names:
    """Names of what can be sampled: `base_model`, and what each user may sample."""

    base_model: str
    records: Records
    desk: SamplingDesk

    async def weights(self, name: str, *, user: str) -> Weights:
        """What `name` stands for now: of several checkpoints, the newest.

        Raises TinkerError (404) for what does not exist or is not the user's to sample.
        """
        if name == self.base_model:
            return BASE
        if name.startswith("tinker://"):
            return self.desk.weights_of(await self.records.checkpoint(name, user=user))
        for checkpoint in await self.checkpoints(user=user):
            if name in {checkpoint.user_metadata.get(ALIAS), checkpoint.model_id}:
                return self.desk.weights_of(checkpoint)
        raise TinkerError(
            f"the model {name!r} is not known",
            fix=f"name {self.base_model}, a tinker:// path of a checkpoint that was saved with "
            'save_weights_for_sampler, or its alias (user_metadata={"alias": NAME} when saving); '
            "GET /v1/models lists yours",
            status=404,
        )

    async def checkpoints(self, *, user: str) -> Sequence[CheckpointRecord]:
        """The user's checkpoints that can be sampled, newest first."""
        page = await self.records.checkpoints(user)
        return [entry for entry in page.entries if entry.kind == "sampler"]
