"""What the training queue says about itself, for `tinker status` and /metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from enginehouse.tinker.kl_figures import KlFigures
from enginehouse.tinker.residency import Model

_MINUTE = 60.0


class UserStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One user: `waiting` jobs, how many for which reason, and tokens/s over the last minute."""

    user: str
    waiting: int
    reasons: Mapping[str, int]
    tokens_per_second: float


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One model: whether it is in the trainer's memory, and the figures of its last RL step.

    `done` is the seq_id of its last job that was done, `lost` why it cannot be trained, and
    `warning` what its owner should look into.
    """

    model_id: str
    user: str
    resident: bool
    waiting: int
    done: int
    idle_seconds: float
    kl: KlFigures | None
    lost: str | None
    warning: str | None


class QueueStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The whole queue. `trainer` is "ready", or why it is not.

    `jobs` counts what was answered since the service started, by "KIND:finished" and "KIND:failed";
    `tokens` what was computed since then.
    """

    trainer: str
    restarts: int
    users: tuple[UserStatus, ...]
    models: tuple[ModelStatus, ...]
    warnings: tuple[str, ...]
    jobs: Mapping[str, int]
    tokens: int
    draining: bool


def describe_users(
    waiting: Iterable[tuple[str, str]], tokens: Mapping[str, int]
) -> tuple[UserStatus, ...]:
    """Users by name, from the user and reason of each waiting job and each one's last minute."""
    reasons: dict[str, Counter[str]] = {user: Counter() for user in tokens}
    for user, reason in waiting:
        reasons.setdefault(user, Counter())[reason] += 1
    return tuple(
        UserStatus(
            user=user,
            waiting=reasons[user].total(),
            reasons=dict(reasons[user]),
            tokens_per_second=tokens.get(user, 0) / _MINUTE,
        )
        for user in sorted(reasons)
    )


def describe_models(
    models: Iterable[Model], *, now: float, kl_threshold: float
) -> tuple[ModelStatus, ...]:
    """Models by name."""
    return tuple(
        ModelStatus(
            model_id=model.model_id,
            user=model.user,
            resident=model.resident,
            waiting=sum(not job.repeated for job in model.line),
            done=model.line.next - 1,
            idle_seconds=max(0.0, now - model.used),
            kl=model.kl,
            lost=model.lost.message if model.lost else None,
            warning=_warning(model, kl_threshold),
        )
        for model in sorted(models, key=lambda model: model.model_id)
    )


def _warning(model: Model, kl_threshold: float) -> str | None:
    if model.kl is None or not model.kl.exceeds(kl_threshold):
        return None
    return (
        f"{model.model_id}: what was sampled and what is trained differ, v1 {model.kl.v1:.4f} and "
        f"v2 {model.kl.v2:.4f} nats per token over {model.kl.positions} tokens; the threshold is "
        f"{kl_threshold}. Were the samples drawn with older weights, or at another temperature?"
    )
