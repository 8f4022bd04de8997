"""Streams cut anywhere, broken anywhere."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable

import pytest

from enginehouse.core.errors import MalformedResponseError, ServerFaultError
from enginehouse.gateway.streams import require_unaborted, whole_events

EVENT = b'data: {"choices":[{"delta":{"content":"a \\"finish_reason\\":\\"abort\\" b"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


async def stream(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    """The pieces."""
    for piece in pieces:
        yield piece


async def passed(pieces: Iterable[bytes]) -> bytes:
    """What is passed on."""
    return b"".join([piece async for piece in whole_events(stream(pieces))])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 1000])
@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
async def test_all_bytes_pass_wherever_they_are_cut(size: int, end: bytes) -> None:
    """And what a model wrote is not taken for the engine's."""
    whole = (EVENT * 3 + DONE).replace(b"\n\n", end)
    assert await passed(whole[n : n + size] for n in range(0, len(whole), size)) == whole


async def test_a_model_that_writes_the_end_mark_does_not_end_its_stream() -> None:
    """Nor is a stream without its end mark taken for a whole one."""
    quoting = b'data: {"choices":[{"text":"data: [DONE]"}]}\n\n'
    assert await passed([quoting, EVENT, DONE]) == quoting + EVENT + DONE
    with pytest.raises(MalformedResponseError):
        await passed([EVENT, quoting])


@pytest.mark.parametrize("mark", [b"data:[DONE]\n\n", b"data: [DONE]\r\n\r\n", DONE[:-2]])
async def test_the_end_mark_in_every_form_that_servers_write(mark: bytes) -> None:
    """With and without a space, and with either kind of line end."""
    assert (await passed([EVENT, mark])).startswith(EVENT + mark)
    assert await passed([EVENT + mark]) in {EVENT + mark, EVENT + mark + b"\n\n"}


async def test_part_of_an_event_is_never_passed_on() -> None:
    """So that the error after it can be read."""
    pieces = whole_events(stream([EVENT, EVENT[:30]]))
    assert await anext(pieces) == EVENT
    with pytest.raises(MalformedResponseError):
        await anext(pieces)


@pytest.mark.parametrize(
    "last",
    [
        b'data: {"error": {"message": "EngineCore died", "code": 500}}\n\n',
        b'data: {"choices":[{"delta":{},"finish_reason":"abort"}]}\n\n',
    ],
)
async def test_an_error_of_the_engine_is_not_followed_by_its_end_mark(last: bytes) -> None:
    """The answer does not count, although the engine ended the stream."""
    with pytest.raises(ServerFaultError):
        await passed([EVENT, last + DONE])


def test_a_whole_answer_that_was_aborted_does_not_count() -> None:
    """By its finish reason, not by what the model wrote."""
    require_unaborted(EVENT)
    with pytest.raises(ServerFaultError):
        require_unaborted(b'{"choices":[{"finish_reason": "abort"}]}')


async def test_a_long_event_in_small_pieces_takes_time_in_proportion() -> None:
    """Twice the pieces do not take four times as long."""

    async def seconds(count: int) -> float:
        started = time.process_time()
        with pytest.raises(MalformedResponseError):
            await passed([b"x" * 64] * count)
        return time.process_time() - started

    await seconds(1000)
    assert await seconds(80_000) < 16 * (await seconds(20_000)) + 0.05
