"""A log as lines of text, whatever it is: bounded in memory and time.

Of a long log the beginning (what engine, how it started) and the end (why it ended) are read.
"""

from __future__ import annotations

import codecs
import json
import re
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO

HEAD = 8 << 20  # bytes read from the beginning of a log …
TAIL = 16 << 20  # … and from its end; what is between them is skipped
LONGEST = 4000  # characters of a line; the rest of it is dropped
_CHUNK = 1 << 18
_SNIFFED = 4096
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]{0,32}[ -/]{0,4}[@-~]|\][^\x07\x1b]{0,500}(?:\x07|\x1b\\)|[@-Z\\^_])"
)
_BARE_COLOUR = re.compile(
    r"(?:ESC|\^\[|\\x1b|\\033|\ufffd)?\[(?:(?:\d{1,3};){0,4}\d{1,3}m|m(?![a-z]))"
)
# What is left of a colour where more than the escape was lost: "36m(Worker pid=1)0m ERROR …"
_COLOUR_REST = re.compile(r"^\d{1,3}m(?=\()|(?<=\))0m(?= )")
# A line of a table that a cloud exports: milliseconds, a comma, and the text, in quotes if need be.
_CELL = re.compile(r"\d{13},(?P<quote>\"?)(?P<text>.*?)(?P=quote)$")
_OCTAL = re.compile(
    r"#(?:033(?:\[[\d;]{0,12}[A-Za-z])?|0\d\d)"
)  # control characters, as syslog writes them
_CONTROLS = {code: None for code in range(32) if code != 9} | {127: None}
_BAR = re.compile(r".{0,600}?(?:it/s|s/it)[^\]]{0,80}\] ?")
_STAMP = re.compile(
    r" (?:(?:\([A-Z][^()\n]{1,60}\) ){0,3}"
    r"(?:INFO|WARNING|ERROR|DEBUG|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d "
    r"(?:\[?[\w./]{1,80}:\d{1,6}\])?"
    r"|\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[^\]\n]{0,30}\] )"
)
_FRAME = re.compile(
    r" (?=Traceback \(most recent call last\):)| (?= ?File \"[^\"\n]{1,300}\", line \d)"
)
_RAISED = re.compile(r" (?=(?:[a-z_]\w{0,40}\.){0,5}[A-Z]\w{1,40}(?:Error|Exception): )")
# A frame that is followed by its code, or by the exception, in the same line.
_JOINED = re.compile(r"File \"[^\"\n]{1,300}\", line \d{1,7}, in \S{1,100} +\S")
_FLAT = 300  # characters from which on a line may be a whole log whose ends of lines were lost
_STAMPS = 3  # times of day in it that make it one
_LEVELS = frozenset(("DEBUG", "INFO", "WARN", "WARNING", "ERROR", "CRITICAL", "FATAL"))
_WRAPPED = re.compile(r'"(?:log|message|msg|MESSAGE|textPayload)"\s{0,4}:\s{0,4}"')


def read_lines(source: BinaryIO) -> Iterator[str]:
    """The lines of a log, without colours, control characters and progress bars.

    Reads UTF-8, UTF-16 and UTF-32, with invalid bytes replaced; takes a carriage return for the end
    of a line; unpacks lines of JSON as containers store them. Blocks while it reads `source`.
    """
    for line in _split(source):
        if line.startswith("{"):
            yield from (_clean(part) for part in _unpacked(line))
        else:
            yield _clean(line)


def _split(source: BinaryIO) -> Iterator[str]:
    """Raw lines, none longer than LONGEST."""
    first = source.read(_SNIFFED)
    encoding = _encoding(first)
    decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
    pending = ""
    for chunk in _bounded(source, first):
        if chunk is None:  # what is between the beginning and the end was skipped
            plain = {"utf-8-sig": "utf-8", "utf-16": _wide(first)}.get(encoding, encoding)
            decoder = codecs.getincrementaldecoder(plain)(errors="replace")
            yield pending
            yield ""
            pending = ""
            continue
        text = decoder.decode(chunk).replace("\r\n", "\n").replace("\r", "\n")
        parts = [part for line in text.split("\n") for part in _unflattened(line)]
        for part in parts[:-1]:
            yield (pending + part[:LONGEST])[:LONGEST]
            pending = ""
        pending = (pending + parts[-1][:LONGEST])[:LONGEST]
    if pending:
        yield pending


def _bounded(source: BinaryIO, first: bytes) -> Iterator[bytes | None]:
    """Chunks of the first HEAD and the last TAIL bytes; None where something was left out."""
    yield first
    read = len(first)
    while read < HEAD and (chunk := source.read(_CHUNK)):
        yield chunk
        read += len(chunk)
    if read < HEAD:
        return
    if source.seekable():
        size = source.seek(0, 2)
        begin = max(read, size - TAIL)
        begin += (begin - read) % 4  # whole characters, also of UTF-32
        if begin > read:
            yield None
        source.seek(begin)
        left = TAIL
        while left > 0 and (chunk := source.read(min(_CHUNK, left))):
            yield chunk
            left -= len(chunk)
        return
    last: deque[bytes] = deque()
    kept = 0
    skipped = False
    while chunk := source.read(_CHUNK):
        last.append(chunk)
        kept += len(chunk)
        while kept - len(last[0]) >= TAIL:
            kept -= len(last.popleft())
            skipped = True
    if skipped:
        yield None
    yield from last


def _encoding(first: bytes) -> str:
    for mark, name in _BOMS:
        if first.startswith(mark):
            return name
    # UTF-16 without a mark: every other byte of English text is 0.
    half = max(len(first) // 2, 1)
    if first[1::2].count(0) > 0.7 * half and first[::2].count(0) < 0.1 * half:
        return "utf-16-le"
    if first[::2].count(0) > 0.7 * half and first[1::2].count(0) < 0.1 * half:
        return "utf-16-be"
    return "utf-8"


def _unflattened(line: str) -> list[str]:
    """The lines of a log that was pasted as one line; a usual line as it is."""
    if line.startswith("{"):
        return [line]
    stamps = list(_STAMP.finditer(line)) if len(line) >= _FLAT else []
    if len(stamps) < _STAMPS:
        return _RAISED.split(line) if _JOINED.search(line) else [line]
    cuts = [0, *(stamp.start() + 1 for stamp in stamps), len(line)]
    ends = [0, *(stamp.end() for stamp in stamps)]
    return [
        part
        for begin, end, text in zip(cuts, cuts[1:], ends, strict=False)
        for part in _in_frames(line[begin:text], line[text:end].rstrip())
    ]


def _in_frames(stamp: str, text: str) -> list[str]:
    """What follows a stamp in lines, of which the first has the stamp."""
    parts = [part for frame in _FRAME.split(text) for part in _RAISED.split(frame)]
    if len(parts) > 1 and not parts[0].strip():
        parts = [f" {parts[1]}", *parts[2:]]
    return [stamp + parts[0], *parts[1:]]


def _wide(first: bytes) -> str:
    return "utf-16-be" if first.startswith(codecs.BOM_UTF16_BE) else "utf-16-le"


def _unpacked(line: str) -> Iterator[str]:
    """The lines that a line of JSON carries: docker's json-file, journald, cloud loggers."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        match = _WRAPPED.search(line)
        text = line[match.end() :].replace("\\n", "\n").replace('\\"', '"') if match else line
    else:
        text = _message(record) or line
    yield from text.rstrip("\n").split("\n")


def _message(record: object) -> str | None:
    """What a record says, with its level as a prefix if it has one; None if it is not a record."""
    if not isinstance(record, dict):
        return None
    fields = record.get("fields")  # TGI's
    holder = fields if isinstance(fields, dict) else record
    names = ("log", "message", "msg", "MESSAGE", "textPayload")
    text = next((holder[name] for name in names if isinstance(holder.get(name), str)), None)
    level = record.get("level") or record.get("levelname")
    if text is None or text[:1].isspace() or not isinstance(level, str):
        return text
    return f"{level.upper()}: {text}" if level.upper() in _LEVELS else text


def _clean(line: str) -> str:
    if line[:1] == "1" and (cell := _CELL.match(line)) is not None:
        line = cell["text"].replace('""', '"') if cell["quote"] else cell["text"]
    if "#0" in line:
        line = _OCTAL.sub("", line)
    if "\x1b" in line:
        line = _ESCAPES.sub("", line)
    if "m" in line and "[" in line:
        line = _BARE_COLOUR.sub("", line)
    if "m(" in line[:5]:
        line = _COLOUR_REST.sub("", line)
    if "it/s" in line or "s/it" in line:
        # What an engine says while a bar is drawn follows it in the same line.
        bar = _BAR.match(line)
        line = line[bar.end() :] if bar else line
    if not line.isprintable():
        line = line.translate(_CONTROLS)
    return line.rstrip()
