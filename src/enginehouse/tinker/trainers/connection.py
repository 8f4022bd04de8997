"""Frames over a socket: 8 bytes of length, little-endian, then as many of a message."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from contextlib import suppress

_LENGTH = 8


class Connection:
    """Our end of a connection to a trainer, which answers in the order in which it is asked.

    An answer that its caller no longer waits for is read and dropped, so the order is kept.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._expected: deque[asyncio.Future[bytes | None]] = deque()
        self._is_open = True
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def over(cls, connected: socket.socket) -> Connection:
        """The connection over a socket, which it closes in the end."""
        return cls(*await asyncio.open_unix_connection(sock=connected))

    def ask(self, message: bytes) -> asyncio.Future[bytes | None]:
        """Send a message; the future is its answer, None if the connection ends before."""
        answer = self.expect()
        if self._is_open:
            self._writer.write(len(message).to_bytes(_LENGTH, "little") + message)
        return answer

    def expect(self) -> asyncio.Future[bytes | None]:
        """The next message that nobody has asked for; see `ask`."""
        answer: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        if self._is_open:
            self._expected.append(answer)
        else:
            answer.set_result(None)
        return answer

    async def close(self) -> None:
        """Close our end. Idempotent."""
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def _read(self) -> None:
        try:
            while True:
                length = int.from_bytes(await self._reader.readexactly(_LENGTH), "little")
                message = await self._reader.readexactly(length)
                if self._expected and not (answer := self._expected.popleft()).done():
                    answer.set_result(message)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self._is_open = False
            for answer in self._expected:
                if not answer.done():
                    answer.set_result(None)
            self._expected.clear()
