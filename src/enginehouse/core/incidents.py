"""Incidents: servers that died while they were in use."""

from __future__ import annotations

from datetime import datetime

import msgspec


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """A server's death while in use, and the cause according to its log.

    `kind` names the diagnosis ("out_of_memory" …; "unknown"). `in_flight`: requests that
    were lost with it. `consequence` says what was done about it.
    """

    moment: datetime
    kind: str
    cause: str
    evidence: str | None
    log: str | None
    in_flight: int
    consequence: str
