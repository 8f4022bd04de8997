"""Logs of strangers: the engine is recognised, and the kind is right (see logs/README.md)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from enginehouse.commands.diagnose import diagnose_file

LOGS = Path(__file__).parent / "logs"
NAMES = sorted(path.relative_to(LOGS).as_posix() for path in LOGS.glob("*/*.log"))


@pytest.mark.parametrize("name", NAMES)
def test_engine_and_kind(name: str):
    """The name says both; the evidence is in the log, and the advice is whole sentences."""
    log = LOGS / name
    report = diagnose_file(log, engine=None, exit_code=None)
    assert report.engine == log.parent.name
    assert report.kind == log.stem.partition("--")[0]
    assert report.evidence
    assert report.evidence[:20] in re.sub(r"\x1b\[[\d;]*m", "", log.read_text())
    assert report.next
    assert not re.search(r"[{}]", (report.next or "").replace(report.evidence, ""))


@pytest.mark.parametrize("name", [name for name in NAMES if "guess" in name])
def test_a_guess_says_that_it_is_one(name: str):
    """In words, and for programs."""
    report = diagnose_file(LOGS / name, engine=None, exit_code=None)
    assert report.guess
    assert "guess" in (report.cause or "")


@pytest.mark.slow
def test_nothing_else_is_a_guess():
    """A rule that knows a text does not guess."""
    reports = {
        name: diagnose_file(LOGS / name, engine=None, exit_code=None)
        for name in NAMES
        if "guess" not in name
    }
    assert [name for name, report in reports.items() if report.guess] == []
