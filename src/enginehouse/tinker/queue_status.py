"""What the training queue says about itself, for `tinker status` and /metrics."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from enginehouse.tinker.kl_figures import KlFigures


class UserStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One user: `waiting` jobs, how many for which reason, and what was computed lately."""

    user: str
    waiting: int
    reasons: Mapping[str, int]
    tokens_per_second: float


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One model: whether it is in the trainer's memory, and the figures of its last RL batch.

    `applied` is the seq_id of its last job that was done. `lost` is why it cannot be trained.
    """

    model_id: str
    user: str
    resident: bool
    waiting: int
    applied: int
    idle_seconds: float
    kl: KlFigures | None
    kl_warning: bool
    lost: str | None


class QueueStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The whole queue. `trainer` is "ready", or why it is not.

    `jobs` counts what was answered since the service started, by kind and outcome ("finished" or
    "failed"); `tokens` what was computed since then.
    """

    trainer: str
    restarts: int
    users: tuple[UserStatus, ...]
    models: tuple[ModelStatus, ...]
    warnings: tuple[str, ...]
    jobs: Mapping[str, int]
    tokens: int
    draining: bool
