"""What the service says about itself, for `tinker status` and /metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from enginehouse.tinker.queue_status import QueueStatus


class SampleLoad(msgspec.Struct, frozen=True, kw_only=True):
    """One user's samples: sequences in the engine, and samples that wait for their turn.

    `tokens_per_second` were sampled over the last minute.
    """

    user: str
    in_flight: int
    waiting: int
    tokens_per_second: float


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The service now.

    `sampling` is what the sampling engine says of itself: its adapters, and who answers for whom
    and why. `futures` are accepted requests without an answer, `polls` the clients that wait for
    one now. `sessions` are alive. `sampled_tokens` and `heartbeats` are since the start.
    """

    base_model: str
    uptime_seconds: float
    notices: tuple[str, ...]
    queue: QueueStatus
    samples: tuple[SampleLoad, ...]
    sampling: Mapping[str, Any]
    futures: int
    polls: int
    sessions: int
    sampled_tokens: int
    heartbeats: int
    draining: bool
