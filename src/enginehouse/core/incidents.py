"""Incidents: servers that died while they were in use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime

import msgspec


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """A server's death while in use, and the cause according to its log.

    `kind` names the diagnosis ("out_of_memory" …; "unknown"). `in_flight`: requests that
    were lost with it. `consequence` says what was done about it; `given_up`: the server was not
    started again.
    """

    moment: datetime
    kind: str
    cause: str
    evidence: str | None
    log: str | None
    in_flight: int
    consequence: str
    given_up: bool = False


def deaths_in_words(incidents: Sequence[Incident]) -> Iterator[str]:
    """One note for each cause of death."""
    for (kind, cause), count in Counter((i.kind, i.cause) for i in incidents).items():
        times = "once" if count == 1 else f"{count} times"
        yield f"the engine died {times} during the run ({kind}): {cause}"
