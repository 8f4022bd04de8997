"""Server-sent events on their way through: passed on whole, and checked for how they end.

The engine's bytes are searched, not decoded. Inside a JSON string every quotation mark is escaped,
so what is searched for cannot be part of a text that the model wrote.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from enginehouse.core.errors import MalformedResponseError, ServerFaultError
from enginehouse.dialects.openai_errors import stream_error

_ABORTED = re.compile(rb'"finish_reason": ?"(?:abort|error)"')
_ERROR = re.compile(rb'(?:^|\n)data: ?(\{"error"[^\n]*)')
# A line of its own: a text that ends with these characters is in the middle of a line.
_DONE = re.compile(rb"(?:\A|[\r\n])data: ?\[DONE\]\s*(?:[\r\n]|\Z)")
_TAIL = 32  # bytes in which the end mark is searched for


def require_unaborted(body: bytes) -> None:
    """Raise ServerFaultError for an answer that the engine did not finish."""
    if _ABORTED.search(body) is not None:
        raise ServerFaultError(
            "the engine aborted the answer",
            why="its finish_reason says so",
            fix="retry; servers do this while they are being stopped",
        )


def is_last(piece: bytes | bytearray) -> bool:
    """Whether a piece of a stream holds its end mark."""
    return _DONE.search(piece, max(0, len(piece) - _TAIL)) is not None


async def whole_events(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The bytes of `chunks`, cut between events; the last piece holds the end mark.

    Raises WireError where the engine reports an error or aborts the answer, and
    MalformedResponseError where the stream ends without its end mark; part of an event is never
    passed on.
    """
    rest = bytearray()  # the beginning of an event that has not ended
    async for chunk in chunks:
        if not rest and chunk.endswith(b"\n\n"):
            piece = chunk
        else:
            searched = max(0, len(rest) - 3)
            rest += chunk
            end = max(rest.rfind(b"\n\n", searched) + 2, rest.rfind(b"\n\r\n", searched) + 3)
            if end < 3:
                continue
            piece = bytes(rest[:end])
            del rest[:end]
        _require_sound(piece)
        yield piece
        if is_last(piece):
            return
    if is_last(rest):  # without a blank line after it
        _require_sound(last := bytes(rest))
        yield last + b"\n\n"
        return
    raise MalformedResponseError(
        "the stream ended before it was complete",
        why="the engine died, or closed the stream without its end marker",
        fix="retry",
    )


def _require_sound(piece: bytes) -> None:
    require_unaborted(piece)
    if b'{"error"' in piece and (match := _ERROR.search(piece)) is not None:
        error = stream_error(match[1])
        if error is not None:
            raise error
