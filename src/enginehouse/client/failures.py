"""What goes wrong below HTTP, in words. No error contains a request's headers."""

from __future__ import annotations

from enginehouse.client.transport import Timeouts
from enginehouse.core.errors import (
    ConnectionFailedError,
    MalformedResponseError,
    RequestTimeoutError,
)


class Failures:
    """The errors of the connections to one server."""

    def __init__(self, base_url: str, *, timeouts: Timeouts) -> None:
        self.base_url = base_url
        self._timeouts = timeouts

    def no_reply(self, why: str) -> ConnectionFailedError:
        """No connection, or it ended before a reply began."""
        return ConnectionFailedError(
            f"no reply from {self.base_url}",
            why=why,
            fix="check that the server is running and listens there",
        )

    def broken_reply(self, why: str) -> MalformedResponseError:
        """A reply ended too early, or was not HTTP."""
        return MalformedResponseError(
            f"the reply from {self.base_url} broke off or is not HTTP",
            why=why,
            fix="read the server's log; a server that died while answering looks like this",
        )

    def broken_off(self) -> MalformedResponseError:
        """A reply ended too early."""
        return self.broken_reply("the connection ended before the whole announced body had arrived")

    def slow_connection(self) -> RequestTimeoutError:
        """`Timeouts.connect` is over."""
        return RequestTimeoutError(
            f"connecting to {self.base_url} took longer than {self._timeouts.connect:g} s",
            fix="check the address and that the server accepts connections",
        )

    def silence(self, *, answered: bool, waited: float) -> RequestTimeoutError:
        """`Timeouts.first_byte` is over; `answered`: the reply had begun."""
        awaited = "the next bytes of the reply" if answered else "the first byte of the reply"
        return RequestTimeoutError(
            f"waiting for {awaited} took longer than {self._timeouts.first_byte:g} s",
            why=f"{self.base_url} was silent; {waited:.1f} s had passed since the start",
            fix="raise Timeouts.first_byte, lower max_tokens, or ask less at once",
        )

    def overtime(self, *, answered: bool, total: float) -> RequestTimeoutError:
        """The whole request's `total` seconds are over; `answered`: the reply had begun."""
        return RequestTimeoutError(
            f"the whole request took longer than {total:g} s",
            why="the reply had begun" if answered else "not a byte of the reply had arrived",
            fix="lower max_tokens or the concurrency; the server may be overloaded",
        )
