"""Reads a log, of a known engine or of one that it recognises, and says why it ended."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from enginehouse.diagnosis.events import Log, Reader
from enginehouse.diagnosis.kinds import Diagnosis
from enginehouse.diagnosis.lines import read_lines
from enginehouse.diagnosis.order import oldest_first
from enginehouse.diagnosis.profile import LogProfile
from enginehouse.diagnosis.selection import select
from enginehouse.diagnosis.wrapping import rejoin_wrapped

_LOOKED_AT = 20_000  # lines of a pipe in which the engine's marks are counted
_SAMPLE = 1 << 20  # bytes from the beginning, and from the end, of a file likewise


class LogExplanation(msgspec.Struct, frozen=True, kw_only=True):
    """Whose log it is, None if nothing shows it, and what it says; None if it says nothing."""

    engine: str | None
    diagnosis: Diagnosis | None


def diagnose_log(log: Path, *, profile: LogProfile, exit_code: int | None) -> Diagnosis | None:
    """The cause in an engine's log, or what the exit code says; None if neither says anything.

    `exit_code` is negative for a signal, None where it is not known. Blocks while it reads, for a
    second per 20 MB or so; of a long log the beginning and the end are read.
    """
    try:
        with log.open("rb") as source:
            events = _events(read_lines(source), profile)
    except OSError:
        return None
    return select(events, profile=profile, exit_code=exit_code)


def explain_log(
    source: BinaryIO, *, profiles: Sequence[LogProfile], otherwise: LogProfile,
    exit_code: int | None,
) -> LogExplanation:  # fmt: skip
    """As `diagnose_log`, of the profile whose marks the log has most of, or else of `otherwise`.

    Raises OSError if it cannot be read. Blocks while it reads.
    """
    lines = read_lines(source)
    if len(profiles) == 1:
        known: LogProfile | None = profiles[0]
    elif source.seekable():
        known = _recognise(_ends(source), profiles)
    else:
        first = list(itertools.islice(lines, _LOOKED_AT))
        known = _recognise(first, profiles)
        lines = itertools.chain(first, lines)
    profile = known or otherwise
    events = _events(lines, profile)
    return LogExplanation(
        engine=known.name if known else None,
        diagnosis=select(events, profile=profile, exit_code=exit_code),
    )


def _events(lines: Iterable[str], profile: LogProfile) -> Log:
    return Reader(profile).read(oldest_first(rejoin_wrapped(lines)))


def _ends(source: BinaryIO) -> list[str]:
    """Lines of the beginning and of the end of a file, whose position is the beginning again."""
    head = source.read(_SAMPLE)
    size = source.seek(0, io.SEEK_END)
    source.seek(max(len(head), size - _SAMPLE) // 4 * 4)
    tail = source.read(_SAMPLE)
    source.seek(0)
    return [*read_lines(io.BytesIO(head)), *read_lines(io.BytesIO(tail))]


def _recognise(lines: Sequence[str], profiles: Sequence[LogProfile]) -> LogProfile | None:
    return _most(lines, profiles, lambda profile: profile.marks) or _most(
        lines, profiles, lambda profile: profile.faint_marks
    )


def _most(
    lines: Sequence[str],
    profiles: Sequence[LogProfile],
    marks: Callable[[LogProfile], re.Pattern[str]],
) -> LogProfile | None:
    counts = {profile.name: 0 for profile in profiles}
    for profile in profiles:
        counts[profile.name] = sum(1 for line in lines if marks(profile).search(line))
    most = max(profiles, key=lambda profile: counts[profile.name])
    return most if counts[most.name] else None
