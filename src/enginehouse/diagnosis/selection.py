"""Chooses the cause among the things that a log says.

The first of these that there is:
1. an error that ended a process and that a definite rule knows, the first of them in the log;
2. native code, compilers or warnings that a definite rule knows: the last ones before the error,
   and near it if it is a traceback that no rule knows;
3. an error that a rule knows as a symptom (a lost connection, a failed build), unless another
   process reported an error that no rule knows before it; then a remark that a symptom's rule
   knows, if there is no such traceback;
4. the error that a pointer to it quotes, if a rule knows it;
5. an error that ended a process and that no rule knows: a guess by the files of its traceback;
6. an error that was survived, if a rule knows it;
7. that it was told to stop;
8. a signal, in the exit code or in the log; SIGKILL only if no error was written at all;
9. what it was waiting for.
"""

from __future__ import annotations

import functools
import re
import signal
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from enginehouse.diagnosis import endings
from enginehouse.diagnosis.events import Failure, Log
from enginehouse.diagnosis.guesses import guess
from enginehouse.diagnosis.kinds import READ_THE_LOG, Diagnosis, FailureKind
from enginehouse.diagnosis.prefixes import KILLED
from enginehouse.diagnosis.profile import NEVER, LogProfile, TwoBuilds
from enginehouse.diagnosis.rule import Rule, recognise
from enginehouse.diagnosis.rules import RULES

LONGEST = 400  # characters of evidence
_RECENT = 12  # lines from the end, in which something may still be waited for
_BEGINNING = 200  # characters of a remark; further on, advice may speak of retries
_NEAR = 12  # lines before a traceback, in which a remark may belong to it
# An error that says no more than that another process or line has the cause.
_POINTER = re.compile(
    r"(?i)see (?:the )?(?:root cause|stack trace|error messages?|logs?) ?(?:\(?above|for)"
    r"|check the logs? above|its error is above|died unexpectedly|Got fatal signal from worker"
    r"|RayTaskError\(|RayActorError|ActorDiedError|ActorUnavailableError|WorkerCrashedError"
    r"|^srun: error: [^\n]{1,100}: Killed\b|^failed \(exitcode: |terminated by signal SIG"
    r"|BrokenProcessPool|ProcessExitedException|ChildFailedError"
    r"|one of the subprocesses|child process(?:es)? (?:failed|died|exited)"
    r"|^(?:\w+\.)*(?:SystemExit|KeyboardInterrupt|CancelledError|GeneratorExit)\b"
    r"|Connection (?:closed|reset) by peer|Broken pipe|remote process (?:exited|has terminated)"
    rf"|Application startup failed|Exiting\.\.\.$|^Aborted\b|^\.*(?:{KILLED})(?:$|  )"
    r"|^Traceback|^EOFError$|^\s*$"
)
# Nothing but a name: an exception that does not say why.
_EMPTY = re.compile(r"^[\w.]+(?:Error|Exception|Empty|Failure|Failed)?:?$")
_SURVIVED = re.compile(
    r"^Exception (?:in thread|ignored in|in callback)|(?i:retry|fall(?:ing|s)? ?back|non-fatal"
    r"|(?:can|could|may|might) (?:cause|lead)|ignor(?:ed|ing)|will continue|skipping"
    r"|disabl(?:ed|ing))"
)
# The exceptions of a signal that tells a process to stop, and those that follow from it.
_INTERRUPTED = re.compile(r"(?:\w+\.)*(?:KeyboardInterrupt\b|SystemExit: (?:0|130|143)$)")
_OF_AN_INTERRUPT = re.compile(
    r"(?:\w+\.)*(?:KeyboardInterrupt|SystemExit|CancelledError|GeneratorExit)\b|\s*$"
)
_EXIT_CODE = re.compile(
    r"(?:[Ee]xit ?[Cc]ode:?|exitcode {1,4}:(?! -15)|exited with(?: code)?|'EngineCore\w{0,20}': )"
    r"[ =]{0,2}(?P<code>-\d{1,3}|1(?:3[024579]|43))\b"
    r"|\bsignal: (?P<name>killed|aborted|segmentation fault|bus error|illegal instruction)"
    r"|(?:signal[ :=]{0,2}(?:SIGKILL|9\b)|status=9/KILL)(?P<kill>)"
    rf"|^\.*(?P<bare>{KILLED})(?:$|  )"
    r"|^(?P<job>Aborted)\s{1,30}(?:\(core dumped\)|\S)"
    r"|(?P<oom>oom[-_ ]kill event)"
    r"|^srun: error: [^\n]{1,100}: Killed\b"
    r"|\bterminated (?:by|with) signal (?P<of>SIG[A-Z]{2,6})\b"
    r"|\b(?:with|exited on) signal[ :=]{0,2}(?P<signal>\d{1,2})\b"
)
_BY_NAME = {
    "killed": signal.SIGKILL, "Aborted": signal.SIGABRT, "aborted": signal.SIGABRT,
    "segmentation fault": signal.SIGSEGV,
    "bus error": signal.SIGBUS, "illegal instruction": signal.SIGILL,
}  # fmt: skip
# An exception as Python quotes it, with its message as an argument.
_QUOTED = re.compile(r"[A-Z]\w{1,60}(?:Error|Exception)\(['\"]")
_OF_A_REQUEST = re.compile(r"Exception in ASGI application|Error in (?:preprocessing|request)")
_FATAL = re.compile(r"^Process [\w:\-]+:$|failed to start|fatal error|hit an exception")


def select(log: Log, *, profile: LogProfile, exit_code: int | None) -> Diagnosis | None:
    """The cause of the end that a log describes; None if neither it nor the exit code says one."""
    selection = _Selection(log, profile)
    diagnosis = selection.of_errors() or selection.of_the_end(exit_code)
    if diagnosis is None or len(diagnosis.evidence) <= LONGEST:
        return diagnosis
    short = diagnosis.evidence[:LONGEST] + "…"
    cause = short if diagnosis.cause == diagnosis.evidence else diagnosis.cause
    return msgspec.structs.replace(diagnosis, evidence=short, cause=cause)


class _Selection:
    """A log's failures sorted: fatal and survived ones, pointers, headings of cut tracebacks."""

    def __init__(self, log: Log, profile: LogProfile) -> None:
        self._log = log
        self._profile = profile
        self._around = replace(
            profile.words, engine=profile.title, on_cpu=log.on_cpu, packages=log.packages
        )
        self._rules: tuple[Rule, ...] = (*profile.rules, *RULES)
        self._definite = [rule for rule in self._rules if not rule.vague]
        self._vague = [rule for rule in self._rules if rule.vague]
        self._fatal: list[Failure] = []
        self._survived: list[Failure] = []
        self._pointers: list[str] = []
        self._pointed = log.lines  # line of the first pointer
        self._cut: list[str] = []
        for failure in log.failures:
            if not failure.texts:
                self._cut.append(failure.heading)
            elif not self._telling(failure):
                self._pointers.extend(failure.texts)
                self._pointed = min(self._pointed, failure.number)
            elif self._is_fatal(failure):
                self._fatal.append(failure)
            else:
                self._survived.append(failure)
        self._ended_itself = any(map(profile.ends_itself.search, self._pointers))

    def of_errors(self) -> Diagnosis | None:
        """Steps 1 to 6 of this module's docstring."""
        return (
            self._known(self._fatal, self._definite)
            or self._spoken(self._definite)
            or self._symptom()
            or self._spoken(self._vague)
            or self._recognise(self._pointers, self._definite)
            or self._recognise(self._cut, self._rules)
            or self._known(self._fatal, self._definite, joined=True)
            or self._unknown(self._fatal)
            or self._of_survived_errors()
        )

    def of_the_end(self, exit_code: int | None) -> Diagnosis | None:
        """Steps 7 to 9, and what else is known if no error explains the end."""
        log, profile = self._log, self._profile
        if log.stopped > log.ready or (log.stopped and not self._pointers):
            return endings.told_to_stop(log.stopped_line)
        said = [text for text in (*self._pointers, *self._cut) if text]
        line = _first_line(said[0]) if said else ""
        killed_itself = self._ended_itself and exit_code in (-signal.SIGKILL, 128 + signal.SIGKILL)
        code, evidence = self._said_exit_code() or (None if killed_itself else exit_code, line)
        lost_connection = [rule for rule in self._rules if rule.kind is FailureKind.COMMUNICATION]
        diagnosis = (
            endings.signalled(code, profile=profile, evidence=evidence)
            or self._recognise(self._pointers, lost_connection)
            or self._interrupted(exit_code)
            or self._of_an_error_beside()
            or (endings.killed(profile=profile, evidence=line) if self._fell_silent() else None)
            or self._died_while_serving(said)
            or self._still_waiting()
            or self._recognise(said, self._rules)
            or (_unknown(line) if line else None)
        )
        if diagnosis is not None or not exit_code:
            return diagnosis
        # It failed, and nothing but an error that was survived explains it: the last of them.
        return self._unknown([f for f in self._survived[-1:] if f.number > log.ready])

    def _telling(self, failure: Failure) -> list[str]:
        """The texts of a failure that are not pointers."""
        return [text for text in failure.texts if not self._is_pointer(text)]

    def _is_pointer(self, text: str) -> bool:
        # An exception may quote another's whole traceback, which says more than its first line.
        rest = text.partition("\n")[2]
        line = _evidence(text)
        points = _POINTER.search(line) or self._profile.pointer.search(line)
        return bool(points) and not any(
            "Error: " in other and not self._profile.pointer.search(other)
            for other in rest.split("\n")
        )

    def _is_fatal(self, failure: Failure) -> bool:
        """Whether it may have ended the engine; an error that was logged and survived did not."""
        profile, log = self._profile, self._log
        heading, first = failure.heading, failure.texts[0]
        if failure.level in ("WARNING", "INFO", "DEBUG") or failure.number < log.ready:
            return False
        if any(p.search(heading) or p.search(first) for p in (profile.fatal, _FATAL)):
            return True
        if _SURVIVED.search(heading) or profile.survived.search(heading or first):
            return False
        unnamed = not failure.process and profile.works.pattern != NEVER.pattern
        if log.ready and (unnamed or profile.serves.search(failure.process)):
            if log.served > failure.last + _NEAR:
                return False
            late = [rule for rule in self._rules if rule.late]
            return self._known([failure], late) is not None
        went_on = log.progress.get(failure.process, 0) > failure.last + 1
        return not (failure.traced and failure.process and went_on)

    def _recognise(self, texts: Sequence[str], rules: Sequence[Rule]) -> Diagnosis | None:
        return recognise("\n".join(texts), rules=rules, around=self._around)

    def _known(
        self, failures: Iterable[Failure], rules: Sequence[Rule], *, joined: bool = False
    ) -> Diagnosis | None:
        """What the rules say of the first failure that one of them knows.

        `joined`: read the first lines of a message as one, in case something broke it in two.
        """
        for failure in failures:
            texts = self._telling(failure)
            if joined:
                lines = [[*map(str.strip, text.split("\n")[:3])] for text in texts]
                texts = [glue.join(some) for some in lines for glue in (" ", "")]
            for rule in rules:
                for text in texts:
                    if (diagnosis := rule.diagnose(text, around=self._around)) is None:
                        continue
                    if "validation error" in diagnosis.evidence:  # only a count
                        return msgspec.structs.replace(diagnosis, evidence=_evidence(text))
                    return diagnosis
        return None

    @functools.cached_property
    def _symptoms(self) -> list[tuple[Failure, Diagnosis | None]]:
        """The fatal errors, in the order of the log, each with what it is a symptom of."""
        return [(failure, self._known([failure], self._vague)) for failure in self._fatal]

    @functools.cached_property
    def _unexplained(self) -> list[Failure]:
        """The fatal tracebacks that are not even a symptom of something known."""
        return [failure for failure, symptom in self._symptoms if failure.traced and not symptom]

    def _spoken(self, rules: Sequence[Rule]) -> Diagnosis | None:
        """What native code, compilers and warnings said; the most specific rule decides.

        Beside tracebacks that no rule knows, only what was said near them counts, and no symptoms:
        a remark from long before may have nothing to do with them.
        """
        log = self._log
        if log.ready and not log.failures:
            return None
        beside = self._unexplained
        if beside and rules is self._vague:
            return None
        remarks = [
            remark.text
            for remark in log.remarks
            if remark.number > log.ready
            and not _SURVIVED.search(remark.text, 0, _BEGINNING)
            and (not beside or any(f.number - _NEAR <= remark.number for f in beside))
        ]
        for rule in rules:
            if rule.spoken:
                for text in reversed(remarks):
                    if (diagnosis := rule.diagnose(text, around=self._around)) is not None:
                        return diagnosis
        return None

    def _symptom(self) -> Diagnosis | None:
        """A symptom that a rule knows, unless another process's unknown error is nearer the cause.

        That is one before the symptom; for a lost connection, also one after it.
        """
        known = [(failure, meant) for failure, meant in self._symptoms if meant is not None]
        if not known:
            return None
        symptom, diagnosis = known[0]
        lost = diagnosis.kind is FailureKind.COMMUNICATION
        others = [
            failure
            for failure in self._unexplained
            if lost or (failure.number < symptom.number and failure.process != symptom.process)
        ]
        return self._unknown(others) or diagnosis

    def _of_survived_errors(self) -> Diagnosis | None:
        """What went wrong before it was ready, though it seemed to go on."""
        if self._log.ready:
            return None
        known = self._known(self._survived, self._definite)
        if known is not None or not self._pointers:
            return known
        return self._known(self._survived, self._vague) or self._unknown(self._survived)

    def _unknown(self, failures: Sequence[Failure]) -> Diagnosis | None:
        """What is said of an error without a rule: the first that has words, tracebacks first."""
        for failure in sorted(failures, key=lambda failure: not failure.traced):
            # The root cause of a chain, unless it is empty and another one has words.
            full = [text for text in self._telling(failure) if not _EMPTY.match(text.strip())]
            if full:
                return self._of_unknown(failure, _evidence(full[0]))
        return self._of_unknown(failures[0], _evidence(failures[0].texts[0])) if failures else None

    def _of_unknown(self, failure: Failure, line: str) -> Diagnosis:
        mixed, packages = self._profile.two_builds, self._log.packages
        if mixed is not None and packages is not None and _are_installed(mixed, packages):
            return msgspec.structs.replace(mixed.diagnosis, evidence=line)
        if (guessed := guess(failure, around=self._around, evidence=line)) is not None:
            return guessed
        called_dead = any(map(self._profile.dead.search, self._pointers))
        if self._log.ready or self._log.served or called_dead:
            return endings.died_while_serving(line, profile=self._profile)
        return _unknown(line)

    @property
    def _answers_follow(self) -> bool:
        """Whether it still answered requests after what seems to be the report of a death."""
        return self._log.answered > self._pointed

    def _said_exit_code(self) -> tuple[int, str] | None:
        """The exit code of a process of the engine, as another one or the shell reports it."""
        remarks = (remark.text for remark in self._log.remarks)
        for line in (*self._pointers, *self._cut, *remarks):
            said = _EXIT_CODE.search(line)
            if said is None or (said["bare"] and (self._ended_itself or self._answers_follow)):
                continue
            if said["of"] in signal.Signals.__members__:
                return -signal.Signals[said["of"]], _first_line(line)
            number = _BY_NAME.get(
                said["name"] or said["job"], int(said["signal"] or signal.SIGKILL)
            )
            return int(said["code"] or -number), _first_line(line)
        return None

    def _interrupted(self, exit_code: int | None) -> Diagnosis | None:
        """No error but that of a signal, or a server that shut down in good order."""
        lines = [_first_line(text) for text in self._pointers]
        if lines:
            interrupt = next(filter(_INTERRUPTED.match, lines), None)
            only = all(map(_OF_AN_INTERRUPT.match, lines))
            line = interrupt or self._log.shut_down
            return endings.told_to_stop(line) if line and only else None
        failed = self._fatal or self._cut or (self._survived and not self._log.served)
        in_order = self._log.shut_down and not failed and not exit_code
        return endings.told_to_stop(self._log.shut_down) if in_order else None

    def _of_an_error_beside(self) -> Diagnosis | None:
        """An error that was written right where the engine is reported dead, as if of a request."""
        beside = [
            failure
            for failure in self._survived
            if abs(failure.number - self._pointed) <= _NEAR
            and not _OF_A_REQUEST.search(failure.heading)
            and not self._profile.survived.search(failure.heading)
            and (failure.traced or _QUOTED.match(failure.texts[0]))
        ]
        if not self._log.ready or not beside:
            return None
        return self._known(beside, self._rules) or self._unknown(beside)

    def _fell_silent(self) -> bool:
        """Another process reports a death, and the one that died wrote ordinary lines only."""
        log, works = self._log, self._profile.works
        if works.pattern == NEVER.pattern or not self._pointers or self._ended_itself:
            return False
        if log.answered and any(map(self._profile.lost.search, self._pointers)):
            return True
        if self._answers_follow:
            return False
        if self._cut:  # an error was written, though the log lacks its end
            return False
        # Ordinary lines after the report are those of another engine, or of one that goes on.
        before = (name for name, number in log.progress.items() if number < self._pointed)
        return bool(log.ready) or any(map(works.search, before))

    def _died_while_serving(self, texts: Sequence[str]) -> Diagnosis | None:
        """Those who sent the engine requests call it dead, and nothing says of what."""
        for line in "\n".join(texts).split("\n"):
            if self._profile.dead.search(line):
                return endings.died_while_serving(line.strip(), profile=self._profile)
        return None

    def _still_waiting(self) -> Diagnosis | None:
        log = self._log
        if self._profile.meeting.search(log.last):
            return endings.still_waiting(log.last.strip())
        failed_since = any(failure.number > log.waiting_number for failure in log.failures)
        if failed_since or not log.waiting or log.lines - log.waiting_number >= _RECENT:
            return None
        return self._recognise([log.waiting], self._rules) or endings.still_waiting(log.waiting)


def _are_installed(builds: TwoBuilds, packages: Path) -> bool:
    return all(next(packages.glob(f"{name}-*.dist-info"), None) for name in builds.distributions)


def _unknown(line: str) -> Diagnosis:
    return Diagnosis(kind=FailureKind.UNKNOWN, evidence=line, cause=line, fix=READ_THE_LOG)


def _first_line(text: str) -> str:
    return text.partition("\n")[0].strip()


def _evidence(text: str) -> str:
    """The line of an exception that says most."""
    first, _, rest = text.strip().partition("\n")
    if "validation error" in first and rest:
        said = rest.strip().partition("\n")[0].strip().removeprefix("Value error, ")
        return said.partition(" [type=")[0] or first
    if rest and re.fullmatch(r"[\w.]+(?:\(\w+\))?:? ?(?:backend='\w+' raised:)?", first):
        return f"{first.rstrip(': ')}: {rest.strip().partition(chr(10))[0].strip()}"
    return first
