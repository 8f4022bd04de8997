"""What is peculiar to one engine's logs."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field

from enginehouse.diagnosis.kinds import Diagnosis
from enginehouse.diagnosis.rule import Rule, Surroundings

NEVER = re.compile(r"(?!)")


@dataclass(frozen=True, kw_only=True)
class LogProfile:
    """How an engine's log is recognised and read; `rules` come before those shared by all.

    `marks`: what only this engine's logs contain; `faint_marks` count where no engine has any.
    `ready`: from here on it answers requests, and
    what was said before did not keep it from that. `stopped`: it was told to stop. `pointer`: an
    error that says that another process or line has the cause. `fatal`: the words before a
    traceback, or an error by itself, that end the engine. `survived`: likewise, but the engine goes
    on. `serves`: the processes whose errors, once it is ready, are those of single requests.
    `error_lines`: bare lines that are errors. `works`: the processes without which it cannot go on.
    `ends_itself`: words after which it ends itself with SIGKILL, which then says nothing.
    `signals`: cause and next step where a signal ended it. `two_builds`: what any unknown error
    means where the CUDA and the CPU build are installed together.
    """

    name: str
    title: str
    marks: re.Pattern[str]
    faint_marks: re.Pattern[str] = NEVER
    rules: tuple[Rule, ...] = ()
    ready: re.Pattern[str] = NEVER
    stopped: re.Pattern[str] = NEVER
    pointer: re.Pattern[str] = NEVER
    fatal: re.Pattern[str] = NEVER
    survived: re.Pattern[str] = NEVER
    serves: re.Pattern[str] = NEVER
    works: re.Pattern[str] = NEVER
    error_lines: re.Pattern[str] = NEVER
    on_cpu: re.Pattern[str] = NEVER
    ends_itself: re.Pattern[str] = NEVER
    signals: Mapping[signal.Signals, tuple[str, str]] = field(default_factory=dict)
    killed_fix: str = ""
    two_builds: Diagnosis | None = None
    words: Surroundings = field(default_factory=Surroundings)
