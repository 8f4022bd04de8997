"""When a session's requests came and were answered, as a file that Perfetto draws.

It is Chrome's trace format (JSON), which https://ui.perfetto.dev opens like its own:
https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from enginehouse.tinker.future import Future


def session_trace(session_id: str, futures: Sequence[Future], *, until: float) -> bytes:
    """The trace of those `futures` that belong to the session, a track for each model and sampler.

    What has not been answered goes on `until` now, a Unix time.
    """
    events: list[dict[str, Any]] = []
    tracks: dict[str, int] = {}
    for future in futures:
        owner = _owner(future)
        if owner is None or not owner.startswith(f"{session_id}:"):
            continue
        track = tracks.setdefault(owner, len(tracks) + 1)
        # Requests overlap: asynchronous events, of a beginning and an end, are drawn side by side.
        common = {
            "name": future.kind,
            "cat": "request",
            "id": future.request_id,
            "pid": track,
            "tid": 0,
        }
        facts = {"request_id": future.request_id, "state": future.state, **future.details}
        end = until if future.answered_at is None else future.answered_at
        events.append({**common, "ph": "b", "ts": future.accepted_at * 1e6, "args": facts})
        events.append({**common, "ph": "e", "ts": end * 1e6})
    events += [
        {"name": "process_name", "ph": "M", "pid": track, "args": {"name": owner}}
        for owner, track in tracks.items()
    ]
    return msgspec.json.encode({"traceEvents": events, "displayTimeUnit": "ms"})


def _owner(future: Future) -> str | None:
    """The model or the sampler that a request is for."""
    owner = future.details.get("model_id") or future.details.get("sampling_session_id")
    return owner if isinstance(owner, str) else None
