"""What befell a server under work."""

from __future__ import annotations

from datetime import datetime

import msgspec


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """A server's death under work, and the cause as far as its log tells.

    `kind` names the diagnosis ("out_of_memory" …; "unknown"). `in_flight`: requests that it took
    with it. `consequence` says what was done about it.
    """

    moment: datetime
    kind: str
    cause: str
    evidence: str | None
    log: str | None
    in_flight: int
    consequence: str
