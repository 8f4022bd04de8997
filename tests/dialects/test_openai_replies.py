"""The small endpoints beside generation."""

from __future__ import annotations

import json

import pytest

from enginehouse.core.errors import MalformedResponseError
from enginehouse.dialects.openai_replies import decode_models, decode_tokenize, encode_tokenize


def test_models():
    """Names in the server's order."""
    body = b'{"object":"list","data":[{"id":"b","root":"x"},{"id":"a","parent":"b"}]}'
    assert decode_models(body) == ("b", "a")
    with pytest.raises(MalformedResponseError):
        decode_models(b'{"data":[{"name":"b"}]}')


def test_tokenize():
    """The ids, and a request that says whether special tokens are wanted."""
    assert decode_tokenize(b'{"count":2,"max_model_len":9,"tokens":[19556,905]}') == (19556, 905)
    asked = json.loads(encode_tokenize("Hi", model="m", add_special_tokens=False))
    assert asked == {"model": "m", "prompt": "Hi", "add_special_tokens": False}
    with pytest.raises(MalformedResponseError):
        decode_tokenize(b'{"tokens":["Hi"]}')


@pytest.mark.parametrize("body", [b'{"data": [{"id"', b'{"data": [{"id": "m"}]'])
def test_a_reply_that_stops_in_the_middle(body: bytes):
    """Not taken for another protocol: somebody ended it too early."""
    with pytest.raises(MalformedResponseError, match="middle") as caught:
        decode_models(body)
    assert f"{len(body)} bytes" in str(caught.value.why)


def test_an_empty_reply_is_no_cut_off_one():
    """It may come from anything."""
    with pytest.raises(MalformedResponseError, match="protocol"):
        decode_models(b"")
