"""Why a server failed, as far as its log says: the words that every engine's rules share."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import msgspec

from enginehouse.core.errors import ServerError

Failed = TypeVar("Failed", bound=ServerError)
_LEAST_ROOM = 1 << 16  # bytes; a disk with less cannot take a log
READ_THE_LOG = "read the log; the first error in it is the one that counts"


class FailureKind(StrEnum):
    """What was diagnosed; docs/errors.md says of each what it means and what to do.

    UNKNOWN: no rule knows it, and the evidence is the first exception.
    """

    UNKNOWN = "unknown"
    MEMORY_TAKEN = "memory_taken"
    NO_CACHE_MEMORY = "no_cache_memory"
    CONTEXT_EXCEEDS_MEMORY = "context_exceeds_memory"
    OUT_OF_MEMORY = "out_of_memory"
    HOST_MEMORY = "host_memory"
    KILLED = "killed"
    CRASHED = "crashed"
    STOPPED = "stopped"
    ENGINE_DIED = "engine_died"
    PORT_TAKEN = "port_taken"
    DISK_FULL = "disk_full"
    TOO_SLOW = "too_slow"
    UNKNOWN_FLAG = "unknown_flag"
    WRONG_VALUE = "wrong_value"
    CONTEXT_TOO_LONG = "context_too_long"
    PARALLELISM = "parallelism"
    UNSUPPORTED_DTYPE = "unsupported_dtype"
    QUANTIZATION = "quantization"
    MODEL_NOT_FOUND = "model_not_found"
    MODEL_GATED = "model_gated"
    MODEL_INCOMPLETE = "model_incomplete"
    MODEL_BROKEN = "model_broken"
    UNSUPPORTED_MODEL = "unsupported_model"
    REMOTE_CODE = "remote_code"
    CUDA_MISMATCH = "cuda_mismatch"
    NO_GPU = "no_gpu"
    WRONG_BUILD = "wrong_build"
    NO_COMPILER = "no_compiler"
    MISSING_LIBRARY = "missing_library"
    WRONG_LIBRARY = "wrong_library"
    TOOL_PARSER = "tool_parser"


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """The first cause: the log's line that shows it, what it means, and what to do next.

    `evidence` is empty where the log says nothing and the exit code is all there is.
    """

    kind: FailureKind
    evidence: str
    cause: str
    fix: str


@dataclass
class Surroundings:
    """What a log says of where it was written: by a CPU engine, from which site-packages."""

    on_cpu: bool = False
    packages: Path | None = None


def groups(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:  # noqa: ARG001
    """The named groups of a match, those that took no part as empty strings."""
    return {name: value or "" for name, value in found.groupdict().items()}


@dataclass(frozen=True)
class Rule:
    """One known failure. `pattern` is searched for in a line of the log.

    `cause` and `fix` name, in braces, groups of the pattern or what `details` makes of them.
    """

    kind: FailureKind
    pattern: str
    cause: str
    fix: str
    details: Callable[[re.Match[str], Surroundings], Mapping[str, str]] = groups


def recognise(line: str, *, rules: Iterable[Rule], around: Surroundings) -> Diagnosis | None:
    """What the first rule that knows a line says of it; None if none does."""
    for rule in rules:
        found = re.search(rule.pattern, line)
        if found is not None:
            details = rule.details(found, around)
            return Diagnosis(
                kind=rule.kind,
                evidence=line,
                cause=rule.cause.format_map(details),
                fix=rule.fix.format_map(details),
            )
    return None


def explained(error: Failed, diagnosis: Diagnosis | None, *, log: Path | None) -> Failed:
    """The same error with the diagnosis's cause, evidence and next step, and the log's path.

    What a rule says to do is better than what the error says; that a log is there is not.
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
    """An engine whose log cannot be written ends, and cannot say why."""
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
        fix="make room, then run it again, or resume the run; ENGINEHOUSE_HOME moves everything",
    )
