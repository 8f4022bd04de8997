"""What stands before a line's text: who wrote it, at which level, and what carried it.

Prefixes are peeled in a loop, since they come in any order and number: a container's time and a
compose service, `(APIServer pid=1) (EngineCore_DP0 pid=68) ERROR 02-06 16:34:06 [core.py:936] `,
Ray's `(RayWorkerWrapper pid=7, ip=10.0.0.4) `, `[rank3]: `, glog's `[E1121 … file.cc:9] `.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LEVELS = r"DEBUG|INFO|NOTICE|WARNING|WARN|ERROR|CRITICAL|FATAL"
_NAMES = {
    "WARN": "WARNING", "FATAL": "CRITICAL", "E": "ERROR", "W": "WARNING", "I": "INFO",
    "F": "CRITICAL", "C": "CRITICAL", "D": "DEBUG", "NOTICE": "INFO",
}  # fmt: skip
_MOST = 12  # prefixes of one line
_PLACE = r"(?P<place>[\w./<>\-]{1,120}:\d{1,6})\]"
_DATE = r"\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?"
# A builder's log, whose times begin with a bar: "  | [2025-03-10T15:07:20Z] "
_BARRED = re.compile(rf"[ \t]{{0,4}}\| (?=\[?{_DATE}\]? )")
# Spaces that a page or a terminal put before everything, if what follows is surely a prefix.
_INDENTED = (
    re.compile(
        rf" {{1,12}}(?=\([\w. @<>:\-]{{1,80}} pid=|(?:{_LEVELS}) \d\d-|\[\d{{4}}-|\[rank\d"
        r"|(?:INFO|WARN) [a-z_\-]{1,40}(?:::|[:{]))"
    ),
    _BARRED,
)
_QUOTED = (re.compile(r"> ?"),)
# A frame that a terminal's viewer drew around the line, which is not that of a traceback.
_FRAMED = (re.compile(rf"│ (?=\(\w|\[\d{{4}}-|(?:{_LEVELS})[: ]|{_DATE})"),)
# How a shell reports the signal that ended a program: bash, and zsh, which writes it small.
KILLED = r"Killed|killed|已杀死|Getötet"
SIGNALLED = (
    r"(?:Segmentation fault|segmentation fault|Bus error|bus error|Illegal instruction"
    r"|illegal hardware instruction|Aborted|abort(?=  )|Floating point exception"
    r"|floating point exception|Trace/breakpoint trap)\b"
)
# A shell writes before it the script and its line, "zsh:", or the number of a job: [1]+ 2204
_BY_SHELL = rf"(?=(?:{KILLED}|{SIGNALLED})(?:$| {{2}}| ?\(| python| vllm))"
_JOB = re.compile(
    r"(?:[\w./\-]{1,120}: (?:line \d{1,6}: {1,6}\d{1,9}|\d{1,6}:)|zsh:(?: \d{1,9})?) {1,4}"
    + _BY_SHELL
)
_NUMBERED_JOB = re.compile(r"\[\d{1,4}\] ?[+\-]? {1,4}(?:\d{1,9} {1,4})?" + _BY_SHELL)
_BRACKETED = (
    # (EngineCore_DP0 pid=68), (VllmWorker rank=1 pid=2), (RayWorkerWrapper pid=7, ip=10.0.0.4)
    re.compile(
        r"\((?P<process>(?:[\w.:<>@\-]{1,80}[ ,]{1,2})?"
        r"(?:(?:pid|rank|ip|actor_id|task_id|node_id)=[^\s,()]{1,80}[, ]{0,2}){1,6})\)[ \t]?"
    ),
    re.compile(r"\((?P<process>raylet|autoscaler|gcs_server)[^()]{0,60}\) ?"),
)
_SQUARE = (
    # [2026-11-21 04:30:31 DP0 TP1], as SGLang has it
    re.compile(rf"\[{_DATE}(?: (?P<process>[A-Z]+\d+(?: [A-Z]+\d+){{0,4}}))?\] ?"),
    re.compile(r"\[\d\d-\d\d \d\d:\d\d:\d\d\] ?"),
    # [E1121 04:30:17.123 ProcessGroupNCCL.cpp:616], [W socket.cpp:464]
    re.compile(
        r"\[(?P<level>[EWIF])(?:\d{3,4} [\d:.]{5,20}(?: \d{1,10})?)? [\w./\-]{1,80}:\d+\] ?"
    ),
    re.compile(r"\[(?P<process>(?:rank|Rank |default)\d{1,5})\]:? ?"),
    # [1746690477.974497] [llm206:611  :0]   ucp_context.c:1268 UCX  ERROR
    re.compile(
        r"\[\d{9,11}\.\d{1,9}\] \[[^\]]{1,80}\] {0,16}[\w.\-]{1,60}:\d+ {1,3}(?P<native>UCX) "
        r"{1,4}(?P<level>ERROR|WARN|FATAL|INFO|DEBUG|DIAG) {1,4}"
    ),
    re.compile(r"\[(?P<process>gpu_id=\d{1,4})\] ?"),
    re.compile(r"\[pod/[^\]\s]{1,200}\] ?"),
    re.compile(r"\[\d{3,6}\] (?=[a-z])"),  # llama.cpp's router: which of its servers
    re.compile(r"\[\d{1,5},\d{1,5}\]<std(?:err|out)>: ?"),
    _NUMBERED_JOB,
    # DJL's server passes on what the engine's process writes.
    re.compile(
        r"\[(?:INFO|WARN|ERROR|DEBUG) {0,2}\] PyProcess - "
        r"(?P<process>[\w.\-]{1,80})-std(?:out|err): ?"
    ),
    re.compile(r"\[(?:INFO|WARN|ERROR|DEBUG) {0,2}\] (?P<process>[\w.\-]{1,80}) [A-Z_]{3,30} - "),
    re.compile(rf"\[(?P<level>(?i:{_LEVELS}))\] ?"),
    # Ray's own: [2023-07-11 15:20:41,680 E 42067 42067] core_worker.cc:97:
    re.compile(
        rf"\[{_DATE} (?P<level>[EWIDFC]) \d{{1,9}} \d{{1,9}}\] (?:[\w./]{{1,80}}:\d{{1,6}}: ?)?"
    ),
    re.compile(rf"\[(?P<level>{_LEVELS})\|[\w.]{{1,80}}:\d{{1,6}}\] {_DATE} >> ?"),
)
_LETTERED = (
    _JOB,
    re.compile(
        r"(?:INFO|WARN|ERROR|DEBUG) {1,3}PyProcess (?P<process>[\w.\-]{1,80})-std(?:out|err): ?"
    ),
    # ERROR 11-21 04:30:17 [core.py:1510], ERROR 08-23 08:25:25 worker_utils.py:226], ERROR 2007 […]
    re.compile(
        rf"(?P<level>{_LEVELS}) (?:[\d\-]{{2,10}}(?: [\d:.,]{{5,16}})?|\d{{1,9}}) \[?{_PLACE} ?"
    ),
    re.compile(rf"(?P<level>{_LEVELS}) \[{_PLACE} ?"),
    # A cloud's console, to which all that was written to stderr is an ERROR.
    re.compile(rf"(?:{_LEVELS}|DEFAULT) {{1,4}}\d{{4}}-\d\d-\d\dT[\d:.]{{8,20}}Z "),
    re.compile(rf"(?P<level>{_LEVELS}) \d{{4}}-\d\d-\d\d [\d:.,]{{5,16}} ?"),
    re.compile(rf"(?P<level>{_LEVELS}) (?P<place>[\w./\-]{{1,80}}\.py:\d{{1,6}}) -- "),
    # TGI's launcher, and its router, which names the spans that a line belongs to:
    # ERROR warmup{max_input_length=1024}:warmup: text_generation_client:
    re.compile(rf"(?P<level>{_LEVELS}) [a-z]{{1,20}}[_\-][\w\-:]{{1,60}}: "),
    re.compile(
        rf"(?P<level>{_LEVELS}) (?=[\w:\-]{{1,60}}\{{)"
        r"(?:[\w\-]{1,40}(?:\{[^{}]{0,400}\})?:){1,8} (?:[a-z_]{1,40}(?:::[a-z_0-9]{1,40}){0,5}: )?"
    ),
    re.compile(r"(?P<level>ERROR|CRITICAL|FATAL) [a-z_][\w.]{0,80}: (?=\S)"),  # Python's logging
    re.compile(rf"(?P<level>{_LEVELS}):(?:[a-z_][\w.]{{0,80}}:)? {{0,9}}"),
    re.compile(rf"(?P<level>{_LEVELS}) {{0,4}}\| [\w.<>]{{1,80}}:[\w<>]{{1,80}}:\d+ - "),
    re.compile(rf"[\w.\-]{{1,80}} - (?P<level>{_LEVELS}) - "),
    # Aug 17 18:42:18 host vllm[8052]:
    re.compile(
        r"[A-Z][a-z]{2} {1,2}\d{1,2} \d\d:\d\d:\d\d [\w.\-]{1,80} (?P<unit>[\w.@/\-]{1,80})"
        r"(?:\[\d{1,9}\])?: ?"
    ),
    re.compile(r"(?P<level>[EWIF])\d{3,4} [\d:.]{8,20} {1,4}\d{1,10} [\w./\-]{1,80}:\d+\] ?"),
    re.compile(r"E {7}(?= *\S)"),  # pytest
    # a compose service
    re.compile(r"[\w.\-]{1,64} {1,40}\| ?"),
    re.compile(rf"time=\S{{10,40}} level=(?P<level>{_LEVELS}) (?:source=\S{{1,80}} )?(?:msg=)?\"?"),
    # node1:101:202 [3] misc/socket.cc:87 NCCL WARN
    re.compile(
        r"[\w.\-]{1,80}:\d{1,9}:\d{1,9} \[\d{1,4}\] (?:[\w./\-]{1,80}:\d{1,6} )?"
        r"(?P<native>NCCL) (?P<level>WARN|ERROR|INFO|TRACE) ?"
    ),
)
_NUMBERED = (
    # 2026-11-29 18:00:00,000 ERROR no such colour, as Python's logging is often set up
    re.compile(rf"{_DATE} (?P<level>ERROR|CRITICAL|FATAL) (?=[A-Za-z][\w'\-]{{0,40}} )"),
    re.compile(r"\d{1,3}\.\d\d\.\d{3}\.\d{3} (?P<level>[IWED]) "),  # llama.cpp
    re.compile(rf"{_DATE}(?: std(?:out|err) [FP])?(?: - | \| |: )? ?(?:- )?(?=\S|$| )"),
    re.compile(r"\d{1,4}: (?=\S| {2,8}\S)"),  # srun --label
    re.compile(r"\d{1,7}\t"),  # a page that numbers its lines
    # an address as the host of NCCL
    _LETTERED[-1],
)
_BY_FIRST = (
    dict.fromkeys("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_", _LETTERED)
    | dict.fromkeys("0123456789", _NUMBERED)
    | {"|": (_BARRED,), "(": _BRACKETED, "[": _SQUARE, ">": _QUOTED, " ": _INDENTED, "│": _FRAMED}
    | dict.fromkeys("./", (_JOB,))
)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a log without its prefixes.

    `process`: the tags of who wrote it, "" if it has none. `prefixed`: whether it has a process, a
    level or a place; a time alone does not identify a logger. `native`: "NCCL" or "UCX".
    """

    text: str
    process: str = ""
    level: str | None = None
    place: str | None = None
    native: str | None = None
    prefixed: bool = False


def peel(line: str) -> Line:
    """A line taken apart. What follows the last prefix keeps its indentation."""
    processes: list[str] = []
    level = place = native = None
    position = 0
    for _ in range(_MOST):
        patterns = _BY_FIRST.get(line[position : position + 1])
        if patterns is None:
            break
        for pattern in patterns:
            match = pattern.match(line, position)
            if match is not None and match.end() > position:
                break
        else:
            break
        position = match.end()
        said = match.groupdict()
        if process := said.get("process"):
            processes.append(" ".join(process.split()))
            if match[0].startswith("[2"):
                level = None  # what forwards an SGLang's line has put its own level before it
        if word := said.get("level"):
            level = _NAMES.get(word.upper(), word.upper())
        place = said.get("place") or place
        native = said.get("native") or native
    return Line(
        text=line[position:].rstrip(" │") if line.startswith("│") else line[position:],
        process=" ".join(processes),
        level=level,
        place=place,
        native=native,
        prefixed=bool(processes or level or place),
    )
