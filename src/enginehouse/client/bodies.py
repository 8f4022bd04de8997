"""Reply bodies, read up to a limit: a server or a compressed reply may never end."""

from __future__ import annotations

from typing import Final

import aiohttp

from enginehouse.core.errors import ReplyTooLargeError

# Bytes after decompression. 8,192 tokens with 20 log-probabilities each take 13 MB.
MAX_REPLY_BYTES: Final = 64 << 20
MAX_ERROR_BYTES: Final = 1 << 20
MAX_PAGE_BYTES: Final = 16 << 20  # the small pages of a server: models, metrics, health


async def read_body(response: aiohttp.ClientResponse, *, limit: int = MAX_REPLY_BYTES) -> bytes:
    """The whole body, decompressed.

    Raises ReplyTooLargeError, and closes the connection, as soon as it has more than `limit` bytes.
    """
    body, complete = await _read_up_to(response, limit)
    if not complete:
        raise too_large(str(response.url.origin()), limit)
    return body


async def read_error_body(response: aiohttp.ClientResponse) -> bytes:
    """The first megabyte of an error reply's body; the connection is closed if there is more."""
    body, _ = await _read_up_to(response, MAX_ERROR_BYTES)
    return body


def too_large(url: str, limit: int) -> ReplyTooLargeError:
    """The error for a reply of more than `limit` bytes."""
    return ReplyTooLargeError(
        f"the reply from {url} has more than {limit >> 20} MiB",
        why="it had not ended, and no answer is that large",
        fix="check the address; ask for fewer completions or log-probabilities in one request",
    )


async def _read_up_to(response: aiohttp.ClientResponse, limit: int) -> tuple[bytes, bool]:
    """The first `limit` bytes, and whether that was the whole body."""
    length = response.content_length
    if length is not None and length <= limit and "Content-Encoding" not in response.headers:
        return await response.read(), True  # the parser reads no further than Content-Length
    chunks: list[bytes] = []
    size = 0
    while chunk := await response.content.readany():
        chunks.append(chunk)
        size += len(chunk)
        if size > limit:
            response.close()
            return b"".join(chunks)[:limit], False
    return b"".join(chunks), True
