"""A person who plays: questions on standard error, answers on standard input."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from contextlib import suppress

from enginehouse.core.errors import ServerGoneError
from enginehouse.report.visible_text import write_text


class Person:
    """The person at the terminal; an answer is one line."""

    def __init__(self) -> None:
        self._unread = b""

    async def ask(self, text: str) -> str:
        """Show a text and return the line that is answered.

        Raises ServerGoneError at the end of the input. When cancelled, the next line is lost.
        """
        write_text(sys.stderr, f"\n{text}\n> ")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes | None] = loop.create_future()

        def settle(line: bytes | None) -> None:
            if not answer.done():
                answer.set_result(line)

        def read() -> None:
            line = self._read_line()
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(settle, line)

        # a thread of the event loop's own pool would be waited for at the end
        threading.Thread(target=read, daemon=True).start()
        try:
            line = await answer
        except asyncio.CancelledError:
            write_text(sys.stderr, "\n")  # the next message begins on a line of its own
            raise
        if line is None:
            write_text(sys.stderr, "\n")
            raise ServerGoneError(
                "a human agent needs input, but standard input is closed",
                fix="resume in a terminal, or use a script or a model",
            )
        return line.decode(errors="replace")

    def _read_line(self) -> bytes | None:
        """The next line, or None at the end of the input. Blocking.

        Past Python's own buffer, whose lock would be held at the interpreter's exit.
        """
        while b"\n" not in self._unread:
            block = os.read(0, 65536)
            if not block:
                rest, self._unread = self._unread, b""
                return rest or None
            self._unread += block
        line, _, self._unread = self._unread.partition(b"\n")
        return line
