"""Standard input, output and error, which the caller may have closed (`<&-`, `>&-`, `2>&-`)."""

from __future__ import annotations

import io
import os
import sys

_STREAMS = (("stdin", os.O_RDONLY, "r"), ("stdout", os.O_WRONLY, "w"), ("stderr", os.O_WRONLY, "w"))


def open_missing_streams() -> None:
    """Open the null device in place of each standard stream that is closed.

    Otherwise the next file or socket would get its number, and a library that takes that for a
    standard stream would abort. Call this before anything is opened; child processes inherit the
    null device.
    """
    for number, (name, flags, mode) in enumerate(_STREAMS):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, flags)
            os.dup2(opened, number)
            if opened != number:
                os.close(opened)
            os.set_inheritable(number, True)
            setattr(sys, name, None)  # a stream object for the closed one, if there is one
        if getattr(sys, name) is None:
            errors = "strict" if mode == "r" else "backslashreplace"
            stream = open(number, mode, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def allow_any_text() -> None:
    """Print characters that the terminal's encoding lacks as escapes instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
