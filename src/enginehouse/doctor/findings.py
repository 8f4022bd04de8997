"""The result of one check of the machine."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Verdict(StrEnum):
    """`problem`: something will fail. `warning`: something may fail or surprise.

    `no`: an engine cannot be used here; others are not affected.
    """

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    NO = "no"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one check found, and what to do next (None if nothing)."""

    check: str
    verdict: Verdict
    says: str
    fix: str | None = None


def fine(check: str, says: str) -> Finding:
    """Nothing is to be done."""
    return Finding(check=check, verdict=Verdict.OK, says=says)


def warning(check: str, says: str, fix: str) -> Finding:
    """Something may fail or surprise."""
    return Finding(check=check, verdict=Verdict.WARNING, says=says, fix=fix)


def problem(check: str, says: str, fix: str) -> Finding:
    """Something will fail."""
    return Finding(check=check, verdict=Verdict.PROBLEM, says=says, fix=fix)
