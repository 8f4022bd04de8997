"""Why a server failed, as far as its log says: the words that every engine's rules share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import msgspec

from enginehouse.core.errors import ServerError

Failed = TypeVar("Failed", bound=ServerError)
READ_THE_LOG = "read the log; the first error in it is the one that counts"


class FailureKind(StrEnum):
    """What was diagnosed. UNKNOWN: no rule knows it, and the evidence is the first exception."""

    UNKNOWN = "unknown"


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """The first cause: the log's line that shows it, what it means, and what to do next."""

    kind: FailureKind
    evidence: str
    cause: str
    fix: str


def explained(error: Failed, diagnosis: Diagnosis | None, *, log: Path | None) -> Failed:
    """The same error with the diagnosis's cause, evidence and next step, and the log's path."""
    if diagnosis is None:
        return type(error)(error.message, why=error.why, fix=error.fix or READ_THE_LOG, log=log)
    return type(error)(
        error.message,
        why=diagnosis.cause,
        fix=error.fix or diagnosis.fix,
        log=log,
        kind=diagnosis.kind.value,
        evidence=diagnosis.evidence if diagnosis.evidence != diagnosis.cause else None,
    )
