"""What is peculiar to one engine's logs."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from enginehouse.diagnosis.kinds import Diagnosis
from enginehouse.diagnosis.rule import Rule, Surroundings

NEVER = re.compile(r"(?!)")


@dataclass(frozen=True, kw_only=True)
class TwoBuilds:
    """What an unknown error means if all of `distributions`, builds of one engine, are installed.

    They overwrite one another's files.
    """

    distributions: tuple[str, ...]
    diagnosis: Diagnosis


@dataclass(frozen=True, kw_only=True)
class LogProfile:
    """How an engine's log is recognised and read.

    `marks`: what only this engine's logs contain; `faint_marks` count if no engine has any.
    `rules`: the engine's own, which come before the shared ones. `ready`: from this line on it
    answers requests, and nothing said before kept it from that.
    `stopped`: it was told to stop. `pointer`: an error that says that another process or line has
    the cause. `fatal`: an error, or the words before a traceback, that ends the engine. `survived`:
    the same for errors after which it goes on. `serves`: the processes whose errors, once it is
    ready, are those of single requests. `error_lines`: lines without a level that are errors.
    `works`: the processes that it cannot run without. `lost`: a pointer that reports one of them
    dead. `dead`: a pointer by which those that send requests call the engine dead. `meeting`: after
    this line processes wait for one another, so a log that ends with it shows a hang.
    `ends_itself`: after these words it ends itself with SIGKILL, which then says nothing.
    `signals`: cause and next step for a signal that ended it. `two_builds`: the engine's
    builds that exclude each other.
    """

    name: str
    title: str
    marks: re.Pattern[str]
    faint_marks: re.Pattern[str] = NEVER
    rules: Iterable[Rule] = ()
    ready: re.Pattern[str] = NEVER
    stopped: re.Pattern[str] = NEVER
    pointer: re.Pattern[str] = NEVER
    fatal: re.Pattern[str] = NEVER
    survived: re.Pattern[str] = NEVER
    serves: re.Pattern[str] = NEVER
    works: re.Pattern[str] = NEVER
    lost: re.Pattern[str] = NEVER
    dead: re.Pattern[str] = NEVER
    meeting: re.Pattern[str] = NEVER
    error_lines: re.Pattern[str] = NEVER
    on_cpu: re.Pattern[str] = NEVER
    ends_itself: re.Pattern[str] = NEVER
    signals: Mapping[signal.Signals, tuple[str, str]] = field(default_factory=dict)
    killed_fix: str = ""
    two_builds: TwoBuilds | None = None
    words: Surroundings = field(default_factory=Surroundings)
