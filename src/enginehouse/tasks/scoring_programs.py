"""How scoring programs are started, and how their results are read."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from enginehouse.core.errors import ScoringError, ScoringTimeoutError
from enginehouse.processes.sandbox import bare_environment, confine, exposes_home, find_sandbox
from enginehouse.tasks.base import Measure, Outcome, Score, ScoringProgram

LANES: Final = max(1, min(4, os.cpu_count() or 1))  # answers that one program scores at once
BATCH: Final = 32  # answers that one process scores, unless each gets one of its own
MEMORY: Final = 1 << 30  # bytes that scoring may take on top of what the program loads
PROCESSES: Final = 64  # that scoring may start, if they can be counted apart from ours
START_TIMEOUT: Final = 120.0  # seconds for loading the code; imports can be slow
_PAYLOAD: Final = Path(__file__).parent.parent / "payloads" / "score_answers.py"
_LONGEST: Final = 1 << 28  # bytes of a program's facts, such as all questions of a task


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """How a program is started; `setup` is the first line that it reads."""

    argv: tuple[str, ...]
    environment: dict[str, str]
    setup: bytes


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A program's result for one answer: a share from 0 to 1, or None for an unparsable answer.

    Or an `error`.
    """

    id: int
    correct: float | None = None
    measures: dict[str, float] = {}
    answer: str | None = None
    error: str | None = None
    timed_out: bool = False


def start_of(program: ScoringProgram) -> Start:
    """The command, environment and setup that start a scoring program. Blocking, milliseconds."""
    sandbox = find_sandbox()
    argv: tuple[str, ...] = (sys.executable, "-P", str(_PAYLOAD))
    environment = dict(os.environ) if program.trusted else bare_environment()
    environment |= {"PYTHONHASHSEED": "0", "PYTHONWARNINGS": "ignore"}
    if not program.trusted:
        argv = confine(argv, sandbox=sandbox, readable=_readable(program))
    setup = {
        "code": msgspec.Raw(program.code.encode()),
        "path": [str(Path(entry).absolute()) for entry in sys.path if entry],
        "seconds": program.seconds,
        "memory": MEMORY,
        "processes": 0 if program.alone else PROCESSES,
        "lanes": LANES,
        "batch": 1 if program.alone else BATCH,
        "confine": not program.trusted and not sandbox.command,
        "trusted": program.trusted,
    }
    return Start(argv=argv, environment=environment, setup=msgspec.json.encode(setup) + b"\n")


def describe(program: ScoringProgram) -> dict[str, Any]:
    """Load the program's code and return its facts.

    Raises ScoringError if it cannot be loaded. Blocking, as long as its imports take.
    """
    start = start_of(program)
    try:
        done = subprocess.run(
            start.argv,
            input=start.setup,
            env=start.environment,
            capture_output=True,
            start_new_session=True,
            timeout=START_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ScoringTimeoutError(
            f"{program.name} cannot be loaded", why=f"it took more than {START_TIMEOUT:g} s"
        ) from error
    return read_facts(program, done.stdout[:_LONGEST], status=done.returncode)


def read_facts(program: ScoringProgram, line: bytes, *, status: int | None) -> dict[str, Any]:
    """The first line that a program writes. Raises ScoringError if it refused, or wrote none."""
    try:
        facts: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError as error:
        why = "its process wrote nothing readable"
        why += f" and ended with status {status}" if status else ""
        raise ScoringError(f"{program.name} cannot be loaded", why=why) from error
    if (refusal := facts.get("refused")) is not None:
        raise ScoringError(f"{program.name} cannot be loaded", why=str(refusal))
    return facts


def score_of(verdict: Verdict, *, program: ScoringProgram, answer: str | None) -> Score:
    """The score for a verdict. Raises ScoringError for an error or an invalid verdict."""
    if verdict.error is not None:
        kind = ScoringTimeoutError if verdict.timed_out else ScoringError
        raise kind(f"{program.name} {verdict.error}")
    numbers = (*verdict.measures.values(), verdict.correct or 0.0)
    if not all(map(math.isfinite, numbers)) or not 0 <= (verdict.correct or 0.0) <= 1:
        raise ScoringError(f"{program.name} returned an invalid result")
    outcome = Outcome.WRONG
    if verdict.correct is None:
        outcome = Outcome.UNPARSABLE
    elif verdict.correct == 1:
        outcome = Outcome.CORRECT
    measures: Mapping[str, Measure] = {
        name: Measure(value) for name, value in verdict.measures.items()
    }
    return Score(outcome=outcome, measures=measures, answer=verdict.answer or answer)


def _readable(program: ScoringProgram) -> tuple[Path, ...]:
    if program.folder is None:
        return (_PAYLOAD,)
    if exposes_home(program.folder):  # a task in the home folder itself: only its modules
        return (_PAYLOAD, *program.folder.glob("*.py"))
    return (_PAYLOAD, program.folder)
