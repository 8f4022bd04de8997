"""Text that others wrote (models, servers, file names), made safe to show on a terminal.

A terminal obeys control characters: they move the cursor, set the clipboard and the window's title,
and hide or reorder what is shown. Each is replaced by its escape, as in a Python string, one
character at a time, so that a sequence that arrives in pieces is caught, too.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import IO

_CONTROLS = (
    "\x00-\x08\x0b-\x1f\x7f"  # C0 but for tab and line feed; ESC among them
    "\x80-\x9f"  # C1: one character that means what ESC and a letter do
    "\u2028\u2029"  # other ends of a line
    "\u202a-\u202e\u2066-\u2069"  # embeddings, overrides and isolates of text direction
    "\ud800-\udfff"  # halves of surrogate pairs, which no encoding has
)
_STANDARD_ERROR = 2
_UNSAFE = re.compile(f"[{_CONTROLS}]")


class OutputClosed(BaseException):
    """Nobody reads standard output any more (`| head`): there is nothing left to do."""


def visible(text: str) -> str:
    """`text` with every control character as its escape; tabs and line ends stay."""
    return _UNSAFE.sub(_escape, text.replace("\r\n", "\n"))


def visible_json(text: str) -> str:
    r"""A JSON document with the same characters as \uXXXX, which means the same to a parser."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def write_text(stream: IO[str], text: str) -> None:
    """Write `text` as `visible` shows it; see `write_plain`."""
    write_plain(stream, visible(text))


def write_plain(stream: IO[str], text: str) -> None:
    """Write `text` unchanged, and flush.

    A standard error that cannot be written any more goes silent, and the work goes on. Raises
    OutputClosed when nobody reads another stream any more, and OSError when it is full.
    """
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        give_up(stream, error)


def give_up(stream: IO[str], error: OSError) -> None:
    """What `write_plain` does when `stream` cannot be written: go silent, or raise."""
    if stream.fileno() == _STANDARD_ERROR:
        silence(stream)
    elif isinstance(error, BrokenPipeError):
        silence(stream)
        raise OutputClosed from None
    else:
        raise error


def silence(stream: IO[str]) -> None:
    """Let what is written to `stream` from now on, and what it still holds, vanish."""
    with suppress(OSError, ValueError):  # a stream in memory has no number
        number = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape", "surrogatepass").decode("ascii")
