"""What a name means to requests that bring one: the base model, a checkpoint, an alias, a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.records.entries import CheckpointRecord
from enginehouse.tinker.records.records import Records
from enginehouse.tinker.sampler_weights import BASE, SamplerWeights
from enginehouse.tinker.sampling.base import Weights


@dataclass(frozen=True, kw_only=True)
class Names:
    """Names of what can be sampled: `base_model`, and what each user may sample."""

    base_model: str
    records: Records
    samplers: SamplerWeights

    async def weights(self, name: str, *, user: str) -> Weights:
        """What `name` stands for now: of several checkpoints, the newest.

        Raises TinkerError (404) for what does not exist or is not the user's to sample.
        """
        if name == self.base_model:
            return BASE
        if name.startswith("tinker://"):
            return await self.samplers.of_path(name, user=user)
        checkpoint = await self.records.sampler_called(name, user=user)
        if checkpoint is not None:
            return self.samplers.of(checkpoint)
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
