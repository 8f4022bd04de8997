"""What a user of the service may ask for at most, and when the queue does what."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of training. Times are in seconds.

    A sequence has at most `sequence_tokens`, where the model would take more. `rank`, and
    `adapters` that one user may train at the same time. `request_tokens` is the most of one
    forward_backward request, `pass_tokens` the most that the trainer computes in one pass if that
    is more than one sequence. `waiting_jobs` is the most of one user. `resident` models fit into
    the trainer's memory.

    Jobs fail that have waited for `gap` for one before them which has not arrived. A model's state
    is saved when it has been idle for `settle`, and it leaves the memory after `idle`. A trainer
    that ends is started again at once, and then after `restart_delay` and twice as long each time,
    up to half a minute; when nothing has been computed for `patience`, the jobs that wait fail.
    Above `kl_threshold`, a |v1| or v2 is warned about. Without `train_unembed`, no adapter has an
    output layer, whatever its owner asked for. `snapshot_ttl` is how long weights live that were
    saved for a sampler without a name; None is an hour longer than their session.
    """

    sequence_tokens: int | None = None
    rank: int = 64
    adapters: int = 64
    request_tokens: int = 1_000_000
    pass_tokens: int = 8192
    waiting_jobs: int = 4096
    resident: int = 16
    gap: float = 600.0
    settle: float = 5.0
    idle: float = 600.0
    restart_delay: float = 1.0
    patience: float = 300.0
    kl_threshold: float = 0.05
    train_unembed: bool = True
    snapshot_ttl: int | None = None
