"""The address at which other machines reach this one."""

from __future__ import annotations

import socket

_FAR = ("192.0.2.1", 9)  # reserved for documentation (RFC 5737); nothing is sent there


def own_address() -> str:
    """That of the interface towards other networks, or else the one of this machine's name.

    Blocks for as long as a name look-up takes. On a machine without a network it is 127.0.0.1.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outgoing:
        try:
            outgoing.connect(_FAR)
            return str(outgoing.getsockname()[0])
        except OSError:
            pass
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"
