"""What a check of a server found."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from enginehouse.statistics.percentiles import Percentiles


class Outcome(StrEnum):
    """`not supported`: the engine does not declare it, or the server was started without it."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_SUPPORTED = "not supported"


class CheckLine(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a server should do, what came of it, and what to do next."""

    name: str
    outcome: Outcome
    says: str
    fix: str | None = None
    seconds: float | None = None


class CheckReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was tried. Of a server that is not ours, what it does not tell is None.

    `latency`: seconds until each of the users that asked at the same time had an answer, over
    those who got one; of none for the conformance suite.
    """

    url: str
    model: str
    engine: str | None
    engine_version: str | None
    lines: tuple[CheckLine, ...]
    latency: Percentiles

    @property
    def failed(self) -> bool:
        """Whether a line failed."""
        return any(line.outcome is Outcome.FAILED for line in self.lines)
