"""A log as events: tracebacks with their chains, errors in words, remarks, and states.

A traceback belongs to the process (and, if it was logged, to the place) that its lines name, so
several may be open at once. An exception is known by its shape: it is the first line after a
traceback's frames that is not indented, and what follows it, indented or not, is its message.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path

from enginehouse.diagnosis.prefixes import KILLED, SIGNALLED, Line, peel
from enginehouse.diagnosis.profile import LogProfile

_ANSWERED = ' HTTP/1.1" 200'  # most lines of most logs
_WORKING = re.compile(r"Avg generation throughput|gen throughput \(token/s\)")
_TRACEBACK = "Traceback (most recent call last)"
_RAISED = re.compile(
    r"(?P<name>[^\W\d][\w.<>$]{0,200}(?:\([\w.]{1,80}\))?)(?:: ?(?P<text>.*)|)$", re.DOTALL
)
# What an exception looks like where no traceback announces it.
_EXCEPTION = re.compile(
    r"(?:[A-Za-z_]\w{0,80}\.){0,12}(?:[A-Za-z_]\w{0,80}(?:Error|Exception|Failed|Failure|Interrupt)"
    r"|Exception|HFValidationError|RayTaskError\(\w{1,80}\)|SystemExit|AssertionError)"
    r"(?::(?: |$)|$)"
    r"|[a-z_]\w{0,80}\.[A-Z]\w{0,60}(?:Error_\w{1,40}|Timeout): "
    r"|(?:[a-z_]\w{0,80}\.){2,12}[A-Z]\w{1,80}: "  # of whatever name, by the path of its module
    r"|.{1,300} \[type=\w{1,40}, input_value="  # pydantic's words without its name
)
_PANIC = r"thread '[^']{0,80}' (?:\(\d{1,9}\) )?panicked at "  # Rust
_ANNOUNCED = re.compile(
    r"^(?:[A-Za-z_]\w{0,80}\.){0,12}[A-Z]\w{0,80}(?:Error|Exception):"
    r"(?: \d{1,4} validation errors? for \S{1,80})?$"
    rf"|^{_PANIC}[^\s']{{1,300}}:\d{{1,6}}:\d{{1,6}}:$"
)
_FILE = re.compile(r'File "(?P<file>[^"]{1,400})", line \d+(?:, in (?P<function>\S{1,100}))?')
_RICH_FILE = re.compile(r"[│|] (?P<file>/[^\s:]{1,400}\.py):\d+ in ")
_CHAINED = re.compile(
    r"(?P<cause>The above exception was the direct cause of the following exception)"
    r"|During handling of the above exception, another exception occurred"
)
# An error that native code writes before it aborts, usually without a prefix.
_NATIVE = (
    r"(?:CUDA|HIP|ROCm) (?:[Rr]untime |[Dd]river )?[Ee]rror(?: \d{1,4})?:? |GPUassert: "
    r"|Failed: Cuda error |NVRM: Xid |LLVM ERROR: "
    r"|(?:CUBLAS|HIPBLAS|CUSPARSE|CUSOLVER)_STATUS_(?!SUCCESS)"
    r"|/\S{1,300}\.(?:cuh?|hip|hpp|h|cc|cpp):\d{1,6}: (?:CUDA|HIP|ROCm) error"
    r"|(?:cuda|hip|cublas|cudnn|hipblas)[A-Z]\w{1,60}"
    r"(?:\([^()\n]{0,100}\))? failed\b|cu(?:BLAS|blas|DNN)\w{0,3} (?:[Ee]rror|API failed)"
    r"|(?:[Gg]ot )?(?:cutlass|CUTLASS) error"
)
_BANNER = re.compile(r"!+ ?(?:Segfault|SIGABRT)|\*\*\* SIG[A-Z]+ received|Fatal Python error")
_ERROR_LINE = re.compile(
    r"[\w./\- ]{1,120}: error: |\S{0,200}python[\d.]{0,5}: (?:No module|can't open|Error while)"
    rf"|{_NATIVE}|[Ee]rror: |\[Errno \d+\]|Fatal Python error|terminate called"
    r"|\S{0,200}: error while loading shared libraries"
    rf"|\.{{0,200}}(?:{KILLED})$|{SIGNALLED}|Abort trap: \d"
    r"|(?:Memory access fault|HW Exception) by GPU|:[01]:\w{1,60}\.cpp {1,20}:\d{1,6} {0,4}:"
    r"|libc\+\+abi: terminating|(?:free|malloc|munmap_chunk)\(\): "
    r"|double free or corruption"
    r"|corrupted size|!+ ?(?:Segfault|SIGABRT)|\*\*\* SIG[A-Z]+ received"
    r"|(?:srun|slurmstepd): error:|Out of memory: Killed process"
    rf"|{_PANIC}"
)
_COMPLAINT = re.compile(r"[\w./\- ]{1,120}: error: ")  # of argparse, after which a program ends
# Words of a line that might explain an end, though nothing makes it an error.
_TELLING = re.compile(
    r"(?i)error|fatal|fail|cannot|can't|could not|not found|no such|out of memory|kill|abort"
    r"|undefined symbol|code=dumped|exit(?:ed with)? ?code|insufficient|unable|warning: |warn "
    r"|denied|exception|timed out|[Ss]ignal(?: \d|:? [A-Z])"
    r"|mismatch|unsupported|exceeds memory"
)
_APART = re.compile(
    r"Process [\w:\-]{1,80}:$|Exception (?:in thread|ignored in)|/\S{1,300}\.py:\d+: \w*Warning: "
    r"|Exception in callback|Future exception was never|Task exception was never|Fatal Python error"
    r"|terminate called|Stack dump|\*\*\* |Extension modules:|Loading |INFO:|usage: "
)
_WAITING = re.compile(
    r"(?i)\bwaiting (?:for|until)\b(?! (?:application (?:startup|shutdown)|init message"
    r"|background|webserver to))"
    r"|still waiting|no available (?:shared memory broadcast )?block found"
)
_DESCRIBED = re.compile(r"(?:Reason|Exit Code): ")  # of a pod, by kubectl
_SHUT_DOWN = re.compile(r"Shutting down(?: FastAPI HTTP server\.?)?\s*$")
_RANK = re.compile(r"[A-Z]+\d")
_PACKAGES = re.compile(r'File "(?P<folder>/[^"]{0,300}/(?:site|dist)-packages)/')
_BOX = "│╭╰╮╯─❱|"
_CARETS = frozenset(" ^~\t")
_KEPT = 300  # failures, and remarks, from the beginning and from the end each
_OPEN = 64  # tracebacks of different processes at once
_BROKEN = 60  # characters of a line that may have been broken
_TEXT = 4000  # characters of an exception's message
_LINES = 60
_FRAMES = 12  # files of a traceback, the last ones
_CHAIN = 24  # exceptions of a chain: the first ones, and the last
_STRAYS = 6  # lines that a traceback may be interrupted by


@dataclass(slots=True)
class Raised:
    """One exception of a chain. `files`: where it was raised, outermost first."""

    name: str
    lines: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    size: int = 0

    def add(self, text: str) -> None:
        """One more line of its message, if there is room."""
        if len(self.lines) < _LINES and self.size < _TEXT:
            self.lines.append(text)
            self.size += len(text)

    @property
    def text(self) -> str:
        """Name and message, in several lines if the message has several."""
        return "\n".join(self.lines)[:_TEXT]


@dataclass(slots=True)
class Failure:
    """An error: a traceback with its chain in the order of the log, or a message by itself.

    `number`: of its first line; `last`: of its last one. `heading`: what was said before the
    traceback. `traced`: whether there is a traceback at all.
    """

    number: int
    process: str
    level: str | None
    heading: str
    traced: bool
    last: int
    raised: list[Raised] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        """The exceptions' texts, the root cause of the chain first."""
        return [raised.text for raised in self.raised if raised.text]


@dataclass(slots=True)
class Remark:
    """A line that is not an error itself but may explain one: a warning, native code's words."""

    number: int
    text: str
    native: str | None


@dataclass
class Log:
    """What a log has said. Numbers are those of lines; 0 where there is none.

    `shut_down`: the line with which the web server ends, for whatever reason. `progress`: of each
    process, the last line that is not an error. `waiting`: the last line that says what is waited
    for. `last`: the last line that is not empty. `answered`: the last answer to a request.
    `served`: the last answer to one that asked for text, rather than for a state.
    """

    failures: list[Failure] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    ready: int = 0
    stopped: int = 0
    stopped_line: str = ""
    shut_down: str = ""
    waiting: str = ""
    waiting_number: int = 0
    last: str = ""
    answered: int = 0
    served: int = 0
    lines: int = 0
    on_cpu: bool = False
    packages: Path | None = None
    progress: dict[str, int] = field(default_factory=dict)


class _State(Enum):
    FRAMES = auto()
    MESSAGE = auto()
    CHAINED = auto()


@dataclass(slots=True)
class _Unfinished:
    """A failure that further lines may belong to."""

    failure: Failure
    state: _State
    files: list[str] = field(default_factory=list)
    strays: int = 0
    lost_indentation: bool = False
    code: str = ""
    indent: str = ""

    def goes_on(self, line: Line, *, number: int) -> bool:
        """Take a line as a part of it; False if it is none."""
        bare = line.text.strip()
        if not bare:
            return True
        text = line.text.removeprefix(self.indent)
        if _CHAINED.match(bare):
            self.state = _State.CHAINED
            return True
        if (match := _FILE.match(bare) or _RICH_FILE.match(text)) is not None:
            self.state, self.failure.traced = _State.FRAMES, True
            file = match["file"].replace("\\", "/")  # as Windows separates folders
            self.files = [*self.files[-_FRAMES + 1 :], file]
            self.lost_indentation = not text[:1].isspace()
            return True
        if not line.prefixed and _BANNER.match(bare):
            return False
        if self.state is _State.FRAMES:
            return self._frame(text, bare)
        return self.state is _State.MESSAGE and self._message(line, bare, number)

    def _frame(self, text: str, bare: str) -> bool:
        if _CARETS.issuperset(bare):
            return True
        if text[0].isspace() or text[0] in _BOX:
            self.code = bare
            return True
        if self.lost_indentation and not _EXCEPTION.match(text):
            self.lost_indentation = False
            self.code = bare
            return True
        if bare.startswith(("[Previous line repeated", "ray::")):
            return True
        match = _RAISED.match(text)
        if match is None:
            self.strays += 1  # another process wrote in between
            return self.strays <= _STRAYS
        raised = Raised(match["name"], files=self.files)
        raised.add(text.strip())
        if match["text"] is None and self.code.startswith("assert "):
            raised.add(self.code)  # an AssertionError without words
        if len(self.failure.raised) >= _CHAIN:
            self.failure.raised.pop()
        self.failure.raised.append(raised)
        self.state, self.files = _State.MESSAGE, []
        return True

    def _message(self, line: Line, bare: str, number: int) -> bool:
        if not line.prefixed and (_APART.match(bare) or _ERROR_LINE.match(bare)):
            return False
        if line.level in ("INFO", "DEBUG") or line.native:
            return False
        if not self.failure.traced and not self._goes_on_in_words(line, bare, number):
            return False
        self.failure.raised[-1].add(line.text)
        return True

    def _goes_on_in_words(self, line: Line, bare: str, number: int) -> bool:
        """Whether a line belongs to an error that has no traceback.

        It does if it is indented, was logged in the same breath, follows one that is nothing but a
        name and a colon, or goes on in the middle of a sentence.
        """
        said = self.failure.raised[-1].lines
        announced = _ANNOUNCED.search(said[0].strip()) or said[-1].rstrip().endswith("):")
        together = line.text[:1].isspace() or bool(announced)
        if number - self.failure.last > 1:
            return together and not line.prefixed
        if line.prefixed:
            return together or line.place is not None
        broken = bare[0].islower() and said[-1][-1:].isalnum() and ": " not in bare
        return together or (broken and _EXCEPTION.match(said[0].strip()) is not None)


_Key = tuple[str, str | None]  # process and place
_BARE: _Key = ("", None)


class Reader:
    """Takes a log's lines one by one; `log` is what they say. Bounded in memory."""

    def __init__(self, profile: LogProfile) -> None:
        self._profile = profile
        self._log = Log()
        self._open: dict[_Key, _Unfinished] = {}
        self._newest: _Unfinished | None = None  # the one that a line without a prefix goes on
        self._before: dict[_Key, str] = {}
        self._last = _BARE
        self._early: list[Failure] = []
        self._late: deque[Failure] = deque(maxlen=_KEPT)
        self._first_remarks: list[Remark] = []
        self._last_remarks: deque[Remark] = deque(maxlen=_KEPT)

    def read(self, lines: Iterable[str]) -> Log:
        """All lines of a log."""
        for line in lines:
            self._log.lines += 1
            if _ANSWERED in line:
                self._log.answered = self._log.lines
                if '"POST ' in line:
                    self._log.served = self._log.lines
            else:
                self._take(line)
        self._log.failures = [*self._early, *self._late]
        self._log.last = self._before.get(self._last, "")
        self._log.remarks = [*self._first_remarks, *self._last_remarks]
        return self._log

    def _take(self, raw: str) -> None:
        line = peel(raw)
        self._note_state(line)
        key = (line.process, line.place)
        unfinished = self._open.get(key)
        if unfinished is None and not line.prefixed:
            unfinished = self._newest or self._broken_off(line)
        elif line.prefixed and line.text:
            self._end_bare_message(unfinished)
        if _TRACEBACK in line.text:
            self._begin(line, key, unfinished)
        elif unfinished is not None and unfinished.goes_on(line, number=self._log.lines):
            unfinished.failure.last = self._log.lines
        else:
            if unfinished is not None:
                self._close(unfinished)
            self._judge(line, key)
        if line.text:
            if len(self._before) > 4 * _OPEN:
                self._before.clear()
            self._before[key] = line.text
            self._last = key

    def _broken_off(self, line: Line) -> _Unfinished | None:
        """The message with a prefix that a terminal or a page broke in the middle of a word."""
        last = self._open.get(self._last)
        if last is None or last.state is not _State.MESSAGE or not line.text[:1].islower():
            return None
        begun = last.failure.raised[-1].lines[-1]
        together = self._log.lines - last.failure.last == 1
        return last if together and begun[-1:].isalnum() and len(begun) >= _BROKEN else None

    def _end_bare_message(self, continued: _Unfinished | None) -> None:
        """A line with a prefix ends the message of an exception that has none."""
        if self._newest is not None and self._newest is continued:
            self._newest = None  # its lines have prefixes, so one without is not its own
        for other in (self._newest, self._open.get(_BARE)):
            if other is None or other is continued or other.state is not _State.MESSAGE:
                continue
            self._close(other)

    def _note_state(self, line: Line) -> None:
        log, profile, text = self._log, self._profile, line.text
        if line.level not in ("ERROR", "CRITICAL"):
            if profile.ready.search(text):
                log.ready = log.lines
            elif profile.stopped.search(text):
                log.stopped = log.stopped or log.lines
                log.stopped_line = log.stopped_line or text.strip()
            elif "throughput" in text and _WORKING.search(text):
                log.answered = log.served = log.lines
            elif text.startswith("Shutting down") and _SHUT_DOWN.match(text):
                log.shut_down = text.strip()
            if ("ait" in text or "block found" in text) and _WAITING.search(text):
                log.waiting, log.waiting_number = text.strip(), log.lines
        if line.place is not None and profile.on_cpu.match(line.place):
            log.on_cpu = True
        if log.packages is None and "-packages/" in text and (match := _PACKAGES.search(text)):
            log.packages = Path(match["folder"])

    def _begin(self, line: Line, key: _Key, unfinished: _Unfinished | None) -> None:
        """A traceback begins: the next one of a chain, or a new one."""
        if unfinished is not None and unfinished.state is _State.CHAINED:
            unfinished.state, unfinished.files = _State.FRAMES, []
            unfinished.failure.last = self._log.lines
            return
        if unfinished is not None:
            self._close(unfinished)
        before = line.text.partition(_TRACEBACK)[0]
        heading = before.strip(f" +|{_BOX}")
        indent = before if before.isspace() else ""
        # A line without a prefix may be anybody's, so it is the heading only if it is the last one.
        if not heading and (key != _BARE or self._last == _BARE):
            heading = self._before.get(key, "").strip()
            if _COMPLAINT.match(heading):
                heading = ""
            if heading:
                self._retract(heading, key)
        self._keep(self._failure(line, heading=heading, traced=True), key, _State.FRAMES)
        self._open[key].indent = indent

    def _failure(self, line: Line, *, heading: str, traced: bool) -> Failure:
        now = self._log.lines
        return Failure(now, line.process, line.level, heading, traced=traced, last=now)

    def _retract(self, heading: str, key: _Key) -> None:
        """What was taken for an error by itself is the heading of a traceback."""
        kept = self._late or self._early
        if kept and not kept[-1].traced and kept[-1].process == key[0]:
            texts = kept[-1].texts
            if texts and texts[-1].strip().endswith(heading):
                kept.pop()

    def _keep(self, failure: Failure, key: _Key, state: _State) -> None:
        if len(self._early) < _KEPT:
            self._early.append(failure)
        else:
            self._late.append(failure)
        if len(self._open) >= _OPEN:
            self._open.pop(next(iter(self._open)))
        self._open[key] = self._newest = _Unfinished(failure, state)

    def _close(self, unfinished: _Unfinished) -> None:
        self._open = {key: one for key, one in self._open.items() if one is not unfinished}
        if self._newest is unfinished:
            self._newest = None

    def _judge(self, line: Line, key: _Key) -> None:
        """A line that belongs to no traceback: an error in words, a remark, or neither."""
        text = line.text.strip()
        if not text or text.startswith("server_args="):
            return
        if _FILE.match(text):
            # A log that begins in the middle of a traceback.
            self._keep(self._failure(line, heading="", traced=True), key, _State.FRAMES)
            self._open[key].goes_on(line, number=self._log.lines)
            return
        if line.text.startswith("    ") and not _DESCRIBED.match(text):
            return  # code
        if self._is_error(line, text):
            failure = self._failure(line, heading="", traced=False)
            raised = Raised("")
            raised.add(text)
            failure.raised.append(raised)
            self._keep(failure, key, _State.MESSAGE)
            return
        # A process still works: it writes an INFO, or what SGLang's ranks say.
        progress = self._log.progress
        works = line.level == "INFO" or (line.level is None and _RANK.match(line.process))
        if works and (line.process in progress or len(progress) < 4 * _OPEN):
            progress[line.process] = self._log.lines
        if line.native or (line.level not in ("INFO", "DEBUG") and _TELLING.search(text, 0, _TEXT)):
            remark = Remark(self._log.lines, text, line.native)
            if len(self._first_remarks) < _KEPT:
                self._first_remarks.append(remark)
            else:
                self._last_remarks.append(remark)

    def _is_error(self, line: Line, text: str) -> bool:
        if line.level is not None:
            return line.level in ("ERROR", "CRITICAL") and line.native is None
        known = (_EXCEPTION, _ERROR_LINE, self._profile.error_lines)
        return any(pattern.match(text) for pattern in known)
