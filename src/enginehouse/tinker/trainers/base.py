"""What a trainer is to the service. It knows nothing of users, HTTP, databases or retries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.data import AdamStep, LoraSpec, LossRequest, LossResult


class TrainerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a running trainer can do.

    `architecture` is the model's class, such as LlamaForCausalLM. `max_length` is the longest
    sequence, in tokens. `dtype` is the type of the base weights; adapters are always float32.
    `batches` says whether requests of several adapters are computed in one pass. `tokenizer` is
    where users on this machine find the tokenizer, if it is not at `base_model`: a folder.
    """

    base_model: str
    architecture: str
    vocabulary_size: int
    max_length: int
    dtype: str
    device: str
    batches: bool
    losses: tuple[str, ...]
    tokenizer: str | None = None


class Trainer(Protocol):
    """Trains LoRA adapters of one base model. All methods are for one caller at a time.

    Adapters are named by their model_id, and live in memory until they are unloaded. Whatever a
    method raises, the other adapters are untouched. Raises TinkerError for what the request is to
    blame for (its own adapter is then as before), and ServerGoneError when the trainer has ended:
    every adapter in memory is lost, and `start` brings up a new one without adapters.
    """

    @property
    def info(self) -> TrainerInfo:
        """What it can do; known once it has started."""
        ...

    async def start(self) -> None:
        """Start, or start again after ServerGoneError; idempotent. Raises StartError."""
        ...

    async def create(self, model_id: str, spec: LoraSpec) -> None:
        """Make a new adapter with a fresh optimizer. With a seed, it is always the same one."""
        ...

    async def compute(self, requests: Sequence[LossRequest]) -> list[LossResult | TinkerError]:
        """Compute requests together, as if each were computed alone.

        They are mostly of different adapters; several of one adapter are chunks of its batch.
        Gradients are added to the adapter's. A request that fails leaves its adapter's gradients
        as they were; the others are not affected.
        """
        ...

    async def optim_step(self, model_id: str, step: AdamStep) -> Mapping[str, float]:
        """Apply and clear the gradients. Returns metrics, among them grad_norm:mean if known."""
        ...

    async def drop_gradients(self, model_id: str) -> None:
        """Forget the gradients that have not been applied; the next step begins without any."""
        ...

    async def save(self, model_id: str, folder: Path, *, state: bool) -> None:
        """Write the adapter into a new folder, as PEFT reads it, all at once or not at all.

        `state` adds the optimizer's state and the gradients that have not been applied, so that
        `load` continues exactly. Nothing is pickled.
        """
        ...

    async def load(
        self, model_id: str, folder: Path, *, optimizer: bool, gradients: bool
    ) -> LoraSpec:
        """Make the adapter in memory from a folder that `save` wrote; replaces one of that name.

        With `optimizer` False, its optimizer begins afresh; with `gradients`, those that were
        pending are pending again.
        """
        ...

    async def unload(self, model_id: str) -> None:
        """Forget an adapter. Idempotent."""
        ...

    async def close(self) -> None:
        """Stop, and leave no process. Idempotent."""
        ...
