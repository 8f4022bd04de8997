"""Why an engine failed, from a log that may come from anywhere."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import msgspec

from enginehouse.core.errors import ConfigurationError, UnknownNameError
from enginehouse.diagnosis import Diagnosis, LogExplanation, LogProfile, explain_log, groups
from enginehouse.engines.base import ServedEngine
from enginehouse.engines.registry import DEFAULT_ENGINE, ENGINES
from enginehouse.runtime.context import Notify

STDIN = Path("-")
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip",
}


class LogReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a log says. `kind` and what follows are None if it says nothing about a failure.

    `engine`: whose log it is, None if nothing shows it. `kind`: one of those in docs/errors.md.
    `evidence`: the line that shows it. `guess`: the kind follows from where an unknown error was
    raised, not from its text.
    """

    engine: str | None
    kind: str | None = None
    evidence: str | None = None
    cause: str | None = None
    next: str | None = None
    guess: bool = False


def diagnose_file(
    log: Path,
    *,
    engine: str | None,
    exit_code: int | None,
    notify: Notify = lambda _: None,
) -> LogReport:
    """Explain a log file, or standard input if its path is "-". Blocks while it is read.

    The engine is recognised from the log unless it is named. `notify` hears of plug-ins that are
    left out because their profile cannot be read. Raises ConfigurationError if the log
    cannot be read, or the engine is not one that is started here.
    """
    profiles = _profiles(notify)
    if engine is not None and engine not in profiles:
        raise UnknownNameError("engine whose logs can be read", engine, profiles)
    chosen = [profiles[engine]] if engine is not None else list(profiles.values())
    try:
        with _opened(log) as source:
            explanation = explain_log(
                source, profiles=chosen, otherwise=_unknown_engine(profiles), exit_code=exit_code
            )
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {log}", why=error.strerror or str(error), fix="name a log file, or -"
        ) from error
    return _report(explanation)


def _profiles(notify: Notify) -> dict[str, LogProfile]:
    profiles = {}
    for load in ENGINES.load_all(on_error=lambda error: notify(str(error))):
        engine = load()
        if not isinstance(engine, ServedEngine):
            continue
        package = ENGINES.package(engine.name)
        try:
            profile = engine.log_profile
            if package is not None:
                _require_readable(profile)
        except Exception as error:
            if package is None:
                raise
            notify(
                f"the log profile of the engine {engine.name} of the package {package} is not "
                f"used: {type(error).__name__}: {error}"
            )
        else:
            profiles[engine.name] = profile
    return profiles


def _require_readable(profile: LogProfile) -> None:
    """Raise whatever a plug-in's profile raises when it is used."""
    profile.marks.search("")
    for rule in profile.rules:
        names = (*re.compile(rule.pattern).groupindex, "engine", "rebuild", "without_gpu")
        if rule.details is groups:
            (rule.cause + rule.fix).format_map(dict.fromkeys(names, ""))


def _unknown_engine(profiles: dict[str, LogProfile]) -> LogProfile:
    """For a log that no engine's marks are in: any engine's rules may know it."""
    rules = tuple(rule for profile in profiles.values() for rule in profile.rules)
    return replace(profiles[DEFAULT_ENGINE], title="the engine", rules=rules, two_builds=None)


def _opened(log: Path) -> BinaryIO:
    if log == STDIN:
        if sys.stdin is None:
            raise ConfigurationError("there is no standard input", fix="name a log file")
        return sys.stdin.buffer
    source = log.open("rb")
    first = source.peek(8)[:8]
    for magic, name in _PACKED.items():
        if first.startswith(magic):
            source.close()
            raise ConfigurationError(
                f"{log} is packed with {name}", fix=f"unpack it first: `zcat {log} | enginehouse "
                "diagnose -` for gzip",
            )  # fmt: skip
    return source


def _report(explanation: LogExplanation) -> LogReport:
    found: Diagnosis | None = explanation.diagnosis
    if found is None:
        return LogReport(engine=explanation.engine)
    return LogReport(
        engine=explanation.engine,
        kind=found.kind.value,
        evidence=found.evidence,
        cause=found.cause,
        next=found.fix,
        guess=found.guess,
    )
