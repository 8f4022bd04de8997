"""The result of a check of a server."""

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
    """One feature that was tried, its outcome, and what to do next."""

    name: str
    outcome: Outcome
    says: str
    fix: str | None = None
    seconds: float | None = None


class CheckReport(msgspec.Struct, frozen=True, kw_only=True):
    """All checks of a server. For an external server, what it does not report is None.

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
