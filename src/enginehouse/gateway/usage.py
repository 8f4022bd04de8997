"""The tokens that the engine says an answer took."""

from __future__ import annotations

import re

import msgspec

from enginehouse.core.sampler import Usage
from enginehouse.dialects.openai_replies import Counts, usage

_EVENT = re.compile(rb'^data: ?(\{.*"usage": ?\{.*)$', re.MULTILINE)


class _Answer(msgspec.Struct):
    usage: Counts | None = None


_decoder = msgspec.json.Decoder(_Answer)


def reported_usage(answer: bytes) -> Usage:
    """The counts in a whole answer, or in one event of a stream; 0 where there are none."""
    try:
        return usage(_decoder.decode(answer).usage)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return usage(None)


def streamed_usage(piece: bytes) -> Usage | None:
    """The last counts in a piece of a stream; None if it has none, as most pieces."""
    if b'"usage"' not in piece or not (events := _EVENT.findall(piece)):
        return None
    return reported_usage(events[-1])
