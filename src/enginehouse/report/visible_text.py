"""Text from models, servers and file names, made safe to show on a terminal.

A terminal obeys control characters: they move the cursor, set the clipboard and the window's title,
and hide or reorder what is shown. Each is replaced by its escape, as in a Python string. This works
on single characters, so that a sequence that arrives in pieces is caught, too.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import IO

_CONTROLS = (
    "\x00-\x08\x0b-\x1f\x7f"  # C0 except tab and line feed; includes ESC
    "\x80-\x9f"  # C1: single characters that mean the same as ESC and a letter
    "\u2028\u2029"  # other line ends
    "\u202a-\u202e\u2066-\u2069"  # embeddings, overrides and isolates of text direction
    "\ud800-\udfff"  # halves of surrogate pairs, which cannot be encoded
)
_STANDARD_ERROR = 2
_UNSAFE = re.compile(f"[{_CONTROLS}]")


class OutputClosed(BaseException):
    """Nobody reads standard output any more (`| head`), so there is nothing left to do."""


def visible(text: str) -> str:
    """`text` with every control character escaped, except tabs and line ends."""
    return _UNSAFE.sub(
        lambda match: match[0].encode("unicode_escape", "surrogatepass").decode("ascii"),
        text.replace("\r\n", "\n"),
    )


def visible_json(text: str) -> str:
    r"""A JSON document with those characters as \uXXXX, which means the same to a parser."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def write_text(stream: IO[str], text: str) -> None:
    """Write `text` with control characters escaped; otherwise as `write_plain`."""
    write_plain(stream, visible(text))


def write_plain(stream: IO[str], text: str) -> None:
    """Write `text` unchanged, and flush.

    If standard error cannot be written any more, it is silenced and the work goes on. Raises
    OutputClosed if nobody reads another stream any more, and OSError if its disk is full.
    """
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        give_up(stream, error)


def give_up(stream: IO[str], error: OSError) -> None:
    """Silence `stream` or raise, as described for `write_plain`."""
    if stream.fileno() == _STANDARD_ERROR:
        silence(stream)
    elif isinstance(error, BrokenPipeError):
        silence(stream)
        raise OutputClosed from None
    else:
        raise error


def silence(stream: IO[str]) -> None:
    """Discard what is written to `stream` from now on, and what it still buffers."""
    with suppress(OSError, ValueError):  # a stream in memory has no file number
        number = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
