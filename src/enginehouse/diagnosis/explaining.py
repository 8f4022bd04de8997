"""An error of a server, with what was diagnosed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TypeVar

from enginehouse.core.errors import ServerError
from enginehouse.diagnosis.kinds import READ_THE_LOG, Diagnosis, FailureKind

Failed = TypeVar("Failed", bound=ServerError)
_LEAST_ROOM = 1 << 16  # bytes; a disk with less cannot take a log


def explained(error: Failed, diagnosis: Diagnosis | None, *, log: Path | None) -> Failed:
    """The same error with the diagnosis's cause, evidence and next step, and the log's path.

    A rule's next step replaces the error's own; the advice to read the log does not.
    """
    if log is not None and (diagnosis is None or diagnosis.kind is FailureKind.UNKNOWN):
        diagnosis = _full_disk(log) or diagnosis
    if diagnosis is None:
        return type(error)(error.message, why=error.why, fix=error.fix or READ_THE_LOG, log=log)
    known = diagnosis.kind is not FailureKind.UNKNOWN
    return type(error)(
        error.message,
        why=diagnosis.cause,
        fix=diagnosis.fix if known else error.fix or diagnosis.fix,
        log=log,
        kind=diagnosis.kind.value,
        evidence=diagnosis.evidence if diagnosis.evidence != diagnosis.cause else None,
    )


def _full_disk(log: Path) -> Diagnosis | None:
    """An engine that cannot write its log ends without being able to say why."""
    try:
        free = shutil.disk_usage(log.parent).free
    except OSError:
        return None
    if free >= _LEAST_ROOM:
        return None
    return Diagnosis(
        kind=FailureKind.DISK_FULL,
        evidence="",
        cause=f"the disk with its log is full ({free // 1024} KB free there)",
        fix="free some space, then run or resume it again; ENGINEHOUSE_HOME moves all files",
    )
