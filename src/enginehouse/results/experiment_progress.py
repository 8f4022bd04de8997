"""How far an experiment is."""

from __future__ import annotations

import msgspec


class ExperimentProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far an experiment is. Calls, tokens and times are those of this session.

    `finished` and `failed` matches are those of all sessions; `playing` are in progress. `replayed`
    calls were answered by records. `seconds_left` is None until a match has ended.
    """

    matches: int
    finished: int
    failed: int
    playing: int
    calls: int
    replayed: int
    in_flight: int
    prompt_tokens: int
    completion_tokens: int
    elapsed: float
    seconds_left: float | None
