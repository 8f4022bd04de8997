"""Reading an engine's log in a test."""

from __future__ import annotations

from pathlib import Path

from enginehouse.diagnosis import Diagnosis, diagnose_log
from enginehouse.engines.base import ServedEngine


def diagnose(engine: ServedEngine, log: Path, *, exit_code: int | None = None) -> Diagnosis | None:
    """Why a server failed, by the engine's own rules."""
    return diagnose_log(log, profile=engine.log_profile, exit_code=exit_code)
