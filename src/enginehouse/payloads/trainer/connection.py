"""Frames over an inherited socket: 8 bytes of length, little-endian, then as many of msgpack."""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading

LOG = logging.getLogger("trainer")
_LENGTH = 8


class Connection:
    """The trainer's end. If the other end is closed, the process ends, whatever it is doing.

    Its adapters are of no use to anybody then, and what it writes is written whole or not at all.
    """

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._frames: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="connection", daemon=True).start()

    def receive(self) -> bytes:
        """The next frame; waits for it."""
        return self._frames.get()

    def send(self, frame: bytes) -> None:
        """Send a frame; waits until it is on its way."""
        try:
            self._socket.sendall(len(frame).to_bytes(_LENGTH, "little") + frame)
        except OSError:
            _end()

    def _read(self) -> None:
        try:
            with self._socket.makefile("rb") as stream:
                while len(head := stream.read(_LENGTH)) == _LENGTH:
                    self._frames.put(stream.read(int.from_bytes(head, "little")))
        except OSError:
            pass
        _end()


def _end() -> None:
    LOG.info("the service has closed the connection: stopping")
    logging.shutdown()
    os._exit(0)
