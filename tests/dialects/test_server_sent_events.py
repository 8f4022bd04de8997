"""Server-sent events, cut anywhere."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from enginehouse.dialects.server_sent_events import EventParser

STREAM = (
    b": keep-alive\n\n"
    b'data: {"a": 1}\n\n'
    b"event: message\r\ndata:no space\r\n\r\n"
    b"data: two\ndata: lines\n\n"
    b": again\n\n\n"
    b"data: \xc3\xa9\n\n"
    b"data: [DONE]\n\n"
)
EVENTS = [b'{"a": 1}', b"no space", b"two\nlines", b"\xc3\xa9", b"[DONE]"]


@given(st.lists(st.integers(0, len(STREAM))))
def test_events_do_not_depend_on_where_the_stream_is_cut(cuts: list[int]):
    """Comments are skipped, both line ends work, and chunks may end inside anything."""
    places = [0, *sorted(cuts), len(STREAM)]
    parser = EventParser()
    events = []
    for start, end in itertools.pairwise(places):
        events += parser.feed(STREAM[start:end])
    assert events + parser.close() == EVENTS


def test_an_event_that_the_end_cut_off_is_given_at_the_close():
    """Some servers leave the last blank line out."""
    parser = EventParser()
    assert parser.feed(b"data: [DONE]") == []
    assert parser.close() == [b"[DONE]"]
    assert parser.close() == []


def test_a_long_line_is_joined_once():
    """Joined at every chunk, these 13 MB would be a terabyte of copying and outlast the limit."""
    parser = EventParser()
    for piece in (b"data: ", *[b"x" * 64] * 200_000):
        assert parser.feed(piece) == []
    assert parser.feed(b"\n\n") == [b"x" * 64 * 200_000]
